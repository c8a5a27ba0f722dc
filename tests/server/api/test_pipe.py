from __future__ import annotations

import threading
from itertools import count

import pytest

from effillm_server.api.pipe import CHUNK_BYTES, CHUNKS_AHEAD, Sink, chunks_of


def export_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "export"]


def test_everything_written_arrives_in_order() -> None:
    def write(sink: Sink) -> None:
        for number in range(100_000):
            sink.write(f"{number}\n")

    text = b"".join(chunks_of(write)).decode()
    assert text == "".join(f"{number}\n" for number in range(100_000))
    assert export_threads() == []


def test_what_the_writer_raises_is_raised_to_the_reader() -> None:
    def write(sink: Sink) -> None:
        sink.write(b"x" * CHUNK_BYTES)
        raise LookupError("gone")

    chunks = chunks_of(write)
    assert len(next(chunks)) == CHUNK_BYTES
    with pytest.raises(LookupError, match="gone"):
        next(chunks)


def test_a_reader_that_leaves_ends_the_writer_which_is_never_far_ahead() -> None:
    written = 0

    def write(sink: Sink) -> None:
        nonlocal written
        for _ in count():
            sink.write(b"x" * CHUNK_BYTES)
            written += 1

    chunks = chunks_of(write)
    next(chunks)
    chunks.close()  # type: ignore[attr-defined]
    assert export_threads() == []
    assert written <= CHUNKS_AHEAD + 2
