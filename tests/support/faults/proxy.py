"""A Postgres wire proxy: one port for each process whose way to the database is to be disturbed, and nobody else's.

It understands just enough of the protocol: where a message begins and ends, which answer ends a statement, and which
message is a notification. So a commit can be let through and its answer withheld, which no kill could time as exactly.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

READ_BYTES = 1 << 16
# A dead path is given up by the kernel after TCP's keep-alives, which the proxy's own kernel would go on answering.
GIVEN_UP_AFTER_S = 15.0
# When a kernel ends a connection of ours on which nobody answers: 5 s idle and three times 2 s of keepalive, as `engine.connect` asks.
STRANDED_S = 11.0
# A lost answer to anything but a commit only means a rollback, which the other faults bring about often enough.
SHARE_OF_OTHERS = 0.2


@dataclass
class Link:
    """One client's way to the database and what is wrong with it."""

    name: str
    port: int = 0
    up_open: asyncio.Event = field(default_factory=asyncio.Event)
    down_open: asyncio.Event = field(default_factory=asyncio.Event)
    drops_notifications: bool = False
    ambiguous_share: float = 0.0
    answers_withheld: int = 0
    notifications_dropped: int = 0
    sessions: set[Session] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.up_open.set()
        self.down_open.set()


class Proxy:
    """Runs in a thread of its own. All methods may be called from any thread and return once they are in force."""

    def __init__(self, upstream: Path, seed: int, host: str = "127.0.0.1") -> None:
        self._upstream = upstream
        self._host = host
        self._random = random.Random(seed)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._servers: list[asyncio.Server] = []
        self._sessions: set[asyncio.Task[None]] = set()
        self.links: dict[str, Link] = {}
        self._thread.start()

    def add(self, name: str) -> Link:
        """A new link, listening on a free port."""

        async def listen() -> Link:
            link = Link(name)
            server = await asyncio.start_server(lambda r, w: self._serve(link, r, w), self._host, 0)
            link.port = server.sockets[0].getsockname()[1]
            self._servers.append(server)
            self.links[name] = link
            return link

        return asyncio.run_coroutine_threadsafe(listen(), self._loop).result(10)

    def partition(self, name: str, *, up: bool = True, down: bool = True) -> None:
        """Nothing passes any more towards the database (`up`), from it (`down`), or both; nobody is told."""
        link = self.links[name]
        closed = [gate for gate, whether in ((link.up_open, up), (link.down_open, down)) if whether]
        self._call(*(gate.clear for gate in closed))

    def heal(self, name: str) -> None:
        link = self.links[name]
        self._call(link.up_open.set, link.down_open.set)

    def strand(self, name: str) -> None:
        """The connections this client has lead nowhere from now on, as when a path breaks; new ones are not affected."""
        link = self.links[name]

        def cut() -> None:
            for session in link.sessions:
                session.is_stranded.set()

        self._call(cut)

    def close(self) -> None:
        async def end() -> None:
            for server in self._servers:
                server.close()
            for session in list(self._sessions):
                session.cancel()
            await asyncio.gather(*self._sessions, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def _call(self, *actions: Callable[[], None]) -> None:
        done = threading.Event()
        for action in (*actions, done.set):
            self._loop.call_soon_threadsafe(action)
        if not done.wait(10):
            raise AssertionError("the proxy's thread does not answer")

    async def _serve(self, link: Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._sessions.add(task)
        try:
            # The end of a stream's callback must not be a cancellation: asyncio would report it.
            with contextlib.suppress(asyncio.CancelledError):
                await Session(link, self._random, reader, writer).run(self._upstream)
        finally:
            self._sessions.discard(task)


class Session:
    """One connection through the proxy."""

    def __init__(
        self, link: Link, dice: random.Random, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.link = link
        self.dice = dice
        self.client = (reader, writer)
        self.query = b""
        self.is_stranded = asyncio.Event()

    async def run(self, upstream: Path) -> None:
        reader, writer = self.client
        server_writer = None
        self.link.sessions.add(self)
        try:
            await self.link.up_open.wait()
            server_reader, server_writer = await asyncio.open_unix_connection(str(upstream))
            ways = [
                asyncio.create_task(self._up(reader, server_writer)),
                asyncio.create_task(self._down(server_reader, writer)),
                asyncio.create_task(self._given_up()),
            ]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)
        except OSError:
            pass  # the database is away: the client sees a closed connection, as it would
        finally:
            self.link.sessions.discard(self)
            _close(writer)
            if server_writer is not None:
                _close(server_writer)

    async def _up(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        # The first message has a length and no type.
        length = await source.readexactly(4)
        target.write(length + await source.readexactly(int.from_bytes(length) - 4))
        async for kind, message in _messages(source):
            await self._passes(self.link.up_open)
            if kind == b"Q":
                self.query = message[5:].rstrip(b"\0").strip().upper()[:40]
            target.write(message)
            await target.drain()

    async def _down(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        async for kind, message in _messages(source):
            await self._passes(self.link.down_open)
            if kind == b"A" and self.link.drops_notifications:
                self.link.notifications_dropped += 1
                continue
            if kind == b"C" and self._withholds():
                return
            target.write(message)
            if source.at_eof() or kind in b"ZA":
                await target.drain()

    async def _passes(self, gate: asyncio.Event) -> None:
        """Returns when what is on its way may go on; on a stranded connection never."""
        await _passable(gate)
        if self.is_stranded.is_set():
            await asyncio.Event().wait()

    async def _given_up(self) -> None:
        """The end of a stranded connection, when a kernel would see that nobody acknowledges anything."""
        await self.is_stranded.wait()
        await asyncio.sleep(STRANDED_S)

    def _withholds(self) -> bool:
        """Whether this answer gets lost: the statement has been carried out, a commit has become durable."""
        share = self.link.ambiguous_share * (1.0 if self.query.startswith(b"COMMIT") else SHARE_OF_OTHERS)
        if self.dice.random() >= share:
            return False
        self.link.answers_withheld += 1
        return True


async def _messages(source: asyncio.StreamReader) -> AsyncIterator[tuple[bytes, bytes]]:
    """(type, whole message) until the end of the connection."""
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
        while True:
            head = await source.readexactly(5)
            yield head[:1], head + await source.readexactly(int.from_bytes(head[1:]) - 4)


async def _passable(gate: asyncio.Event) -> None:
    if not gate.is_set():
        try:
            await asyncio.wait_for(gate.wait(), GIVEN_UP_AFTER_S)
        except TimeoutError:
            raise ConnectionResetError from None


def _close(writer: asyncio.StreamWriter) -> None:
    """Close at once, unsent bytes included: nobody waits for a peer that is gone."""
    with contextlib.suppress(OSError):
        sock = writer.get_extra_info("socket")
        if sock is not None and sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    writer.transport.abort()
