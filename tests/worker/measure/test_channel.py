from __future__ import annotations

import io
import mmap
import os

import pytest
from pydantic import ValidationError

from effillm_worker.measure.channel import Channel, ParentGone, ProtocolError
from effillm_worker.messages import REPORT, Acknowledge, Close, Stage, Window


def lines(*commands: Acknowledge | Close) -> io.BytesIO:
    return io.BytesIO(b"".join(command.model_dump_json().encode() + b"\n" for command in commands))


def test_stage_waits_for_the_acknowledgement() -> None:
    written = io.BytesIO()
    channel = Channel(lines(Acknowledge(), Close()), written)
    channel.stage("loaded", {"allocated": 7})
    assert REPORT.validate_json(written.getvalue()) == Stage(stage="loaded", allocator={"allocated": 7})
    assert channel.receive() == Close()


def test_something_else_than_an_acknowledgement_breaks_the_protocol() -> None:
    with pytest.raises(ProtocolError, match="expected Acknowledge, found Close"):
        Channel(lines(Close()), io.BytesIO()).stage("loaded", {})


def test_end_of_the_command_pipe_means_the_parent_is_gone() -> None:
    with pytest.raises(ParentGone):
        Channel(io.BytesIO(), io.BytesIO()).receive()


def test_nobody_reading_means_the_parent_is_gone() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb", buffering=0) as stream, pytest.raises(ParentGone):
        Channel(io.BytesIO(), stream).send(Window(open=True))


def test_a_line_that_is_no_command_is_refused() -> None:
    with pytest.raises(ValidationError):
        Channel(io.BytesIO(b'{"kind": "shell"}\n'), io.BytesIO()).receive()


def test_counter_shows_the_tokens_so_far_to_another_process() -> None:
    descriptor = os.memfd_create("progress")
    os.ftruncate(descriptor, 8)
    with mmap.mmap(descriptor, 8) as counter:
        channel = Channel(io.BytesIO(), io.BytesIO(), counter)
        for _ in range(300):
            channel.tick()
        assert int.from_bytes(os.pread(descriptor, 8, 0), "little") == 300
    os.close(descriptor)


@pytest.mark.parametrize("environment", [{}, {"EFFILLM_COMMAND_FD": "x"}, {"EFFILLM_COMMAND_FD": "3"}])
def test_missing_descriptors_are_named(environment: dict[str, str]) -> None:
    with pytest.raises(ProtocolError, match="must name an open descriptor"):
        Channel.from_environment(environment)
