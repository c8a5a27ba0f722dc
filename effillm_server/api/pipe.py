"""A writer of a stream turned into an iterator of chunks, so that an export leaves while it is still being read."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator

CHUNK_BYTES = 64 << 10
CHUNKS_AHEAD = 8
LOOK_AGAIN_S = 0.2


class Abandoned(Exception):
    """The reader went away; the writer stops."""


class Sink:
    """The writing end, a file for text or bytes: hands chunks over, waits while the reader is behind."""

    closed = False

    def __init__(self) -> None:
        self.handed: queue.Queue[bytes | BaseException | None] = queue.Queue(CHUNKS_AHEAD)
        self.abandoned = threading.Event()
        self._buffer = bytearray()
        self._position = 0

    def write(self, data: str | bytes) -> int:
        chunk = data.encode() if isinstance(data, str) else bytes(data)
        self._buffer += chunk
        self._position += len(chunk)
        if len(self._buffer) >= CHUNK_BYTES:
            self.flush()
        return len(data)

    def tell(self) -> int:
        return self._position

    def flush(self) -> None:
        if self._buffer:
            self.put(bytes(self._buffer))
            self._buffer.clear()

    def close(self) -> None:
        """Nothing to close: the end of the stream is the end of its writer."""

    def put(self, item: bytes | BaseException | None) -> None:
        """Hand `item` over, waiting for room. Raises when nobody reads any more."""
        while not self.abandoned.is_set():
            try:
                self.handed.put(item, timeout=LOOK_AGAIN_S)
                return
            except queue.Full:
                continue
        raise Abandoned


def chunks_of(write: Callable[[Sink], None]) -> Iterator[bytes]:
    """The bytes that `write` writes, in order, while it runs in a thread of its own.

    What `write` raises is raised here. A reader that stops early (`close()`) stops the writer at its next chunk.
    """
    sink = Sink()
    writer = threading.Thread(target=_run, args=(write, sink), name="export", daemon=True)
    writer.start()
    try:
        while (chunk := sink.handed.get()) is not None:
            if isinstance(chunk, BaseException):
                raise chunk
            yield chunk
    finally:
        sink.abandoned.set()
        writer.join()


def _run(write: Callable[[Sink], None], sink: Sink) -> None:
    end: BaseException | None = None
    try:
        write(sink)
        sink.flush()
    except Abandoned:
        return
    except Exception as error:  # noqa: BLE001 (handed on to the reader)
        end = error
    try:
        sink.put(end)
    except Abandoned:
        return
