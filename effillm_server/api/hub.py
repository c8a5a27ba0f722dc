"""One reader of the event table for all subscribers of a process: woken by NOTIFY, polling where that is lost."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import select
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import psycopg2
import sqlalchemy

from effillm_server.errors import Unavailable
from effillm_server.ledger import queries
from effillm_server.ledger.journal import CHANNEL
from effillm_server.records import EventRecord, Viewer

POLL_S = 1.0
RECONNECT_S = 1.0
COALESCE_S = 0.01
READY_WITHIN_S = 5.0
BATCH = 1000
MAX_BACKLOG_BYTES = 1 << 20
log = logging.getLogger("effillm.api")


def encode(event: EventRecord) -> bytes:
    """The event as a server-sent event."""
    data = {
        "id": event.id,
        "kind": event.kind,
        "sweep": event.sweep_id,
        "job": event.job_id,
        "at": event.at.isoformat(),
        "data": event.data,
    }
    return f"id: {event.id}\nevent: {event.kind}\ndata: {json.dumps(data, separators=(',', ':'))}\n\n".encode()


@dataclass(eq=False)
class Subscription:
    """One client's share of the stream, read on the event loop. `ended` is set when it lags too far or the hub closes.

    It gets what is handed out behind `joined_at`, less what the client has seen already: events up to `seen`.
    """

    sweep_id: str | None
    seen: int
    joined_at: int
    viewer: Viewer
    backlog: deque[bytes] = field(default_factory=deque)
    backlog_bytes: int = 0
    ended: bool = False
    wake: asyncio.Event = field(default_factory=asyncio.Event)

    def offer(self, chunk: bytes) -> None:
        """Queue `chunk`; a subscriber with more than a megabyte unread is ended, and resumes by its last event id."""
        if self.ended or not chunk:
            return
        if self.backlog_bytes + len(chunk) > MAX_BACKLOG_BYTES:
            self.end()
            return
        self.backlog.append(chunk)
        self.backlog_bytes += len(chunk)
        self.wake.set()

    def end(self) -> None:
        self.ended = True
        self.wake.set()

    async def next(self, timeout_s: float) -> bytes | None:
        """What arrived since the last call, waiting up to `timeout_s`; empty after that, None at the end."""
        if not self.backlog and not self.ended:
            try:
                async with asyncio.timeout(timeout_s):
                    await self.wake.wait()
            except TimeoutError:
                return b""
        self.wake.clear()
        chunk = b"".join(self.backlog)
        self.backlog.clear()
        self.backlog_bytes = 0
        return chunk if chunk or not self.ended else None


@dataclass
class _Follower:
    """Id of the last event read, None before the first look; a new connection goes on from there."""

    position: int | None = None


class Hub:
    """Reads events in a thread and hands them to the subscribers on the event loop."""

    def __init__(self, engine: sqlalchemy.Engine, *, poll_s: float = POLL_S) -> None:
        self._engine = engine
        self._poll_s = poll_s
        self._subscriptions: set[Subscription] = set()
        self._position: int | None = None
        self._known = asyncio.Event()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._wake_read, self._wake_write = -1, -1

    @property
    def subscribers(self) -> int:
        return len(self._subscriptions)

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        self._wake_read, self._wake_write = os.pipe()
        self._thread = threading.Thread(target=self._run, args=(loop,), name="events", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread. Not on the event loop: it waits."""
        self._stop.set()
        if self._thread is not None:
            os.write(self._wake_write, b"x")
            self._thread.join()
            os.close(self._wake_read)
            os.close(self._wake_write)
            self._thread = None

    def end_subscriptions(self) -> None:
        """End every stream; its client comes back to whoever serves then. On the event loop."""
        for subscription in list(self._subscriptions):
            subscription.end()

    async def subscribe(self, sweep_id: str | None, seen: int, viewer: Viewer) -> Subscription:
        """A subscription to what is handed out from now on. Raises Unavailable while the database is away."""
        try:
            async with asyncio.timeout(READY_WITHIN_S):
                await self._known.wait()
        except TimeoutError:
            raise Unavailable("the event stream waits for the database; try again") from None
        subscription = Subscription(sweep_id, seen, self._position or 0, viewer)
        if self._stop.is_set():
            subscription.end()
        self._subscriptions.add(subscription)
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        self._subscriptions.discard(subscription)

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        follower = _Follower()
        while not self._stop.is_set():
            try:
                with self._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                    # Out of the pool: nobody else may inherit a connection that listens.
                    connection.detach()
                    connection.exec_driver_sql(f"LISTEN {CHANNEL}")
                    self._follow(connection, follower, loop)
            except sqlalchemy.exc.SQLAlchemyError as error:
                log.warning("events_database_away", extra={"error": type(error).__name__})
                self._stop.wait(RECONNECT_S)
            except Exception:  # the edge of the thread: without it every stream would fall silent for good
                log.exception("events_failed")
                self._stop.wait(RECONNECT_S)

    def _follow(self, connection: sqlalchemy.Connection, follower: _Follower, loop: asyncio.AbstractEventLoop) -> None:
        """Hands out events as they come, until the hub is closed or the connection fails."""
        driver: Any = connection.connection.dbapi_connection
        # Not select(): with a thousand streams open, descriptors are beyond what it can watch.
        poller = select.poll()
        poller.register(driver.fileno(), select.POLLIN)
        poller.register(self._wake_read, select.POLLIN)
        if follower.position is None:
            follower.position = queries.last_event_id(connection)
            self._on_loop(loop, self._deliver, follower.position, [])
        while not self._stop.is_set():
            driver.notifies.clear()
            events = queries.events(connection, follower.position, BATCH)
            if events:
                follower.position = events[-1].id
                self._on_loop(loop, self._deliver, follower.position, events)
            # Notifications may also have come in with the answer to the query.
            if len(events) == BATCH or driver.notifies:
                continue
            readable = {descriptor for descriptor, _ in poller.poll(self._poll_s * 1000)}
            if driver.fileno() in readable:
                try:
                    driver.poll()
                except psycopg2.Error as error:
                    raise sqlalchemy.exc.OperationalError("LISTEN", None, error) from error
                # A burst of notifications becomes one read.
                self._stop.wait(COALESCE_S)

    @staticmethod
    def _on_loop(loop: asyncio.AbstractEventLoop, call: Callable[..., None], *arguments: Any) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody is left to tell
            loop.call_soon_threadsafe(call, *arguments)

    def _deliver(self, position: int, events: Sequence[EventRecord]) -> None:
        self._position = position
        self._known.set()
        if not self._subscriptions or not events:
            return
        encoded = [(event, encode(event)) for event in events]
        has_private = any(event.visibility == "private" for event in events)
        # One join for all who want the same, which is nearly everybody.
        chunks: dict[tuple[str | None, int, Viewer | None], bytes] = {}
        for subscription in list(self._subscriptions):
            behind = subscription.seen if subscription.seen >= events[0].id else 0
            wanted = (subscription.sweep_id, behind, subscription.viewer if has_private else None)
            if wanted not in chunks:
                chunks[wanted] = b"".join(chunk for event, chunk in encoded if _is_due(event, *wanted))
            subscription.offer(chunks[wanted])


def _is_due(event: EventRecord, sweep_id: str | None, behind: int, viewer: Viewer | None) -> bool:
    """Whether the event is one of those asked for, and exists for `viewer` (None: nothing here is private)."""
    if event.id <= behind or sweep_id not in (None, event.sweep_id):
        return False
    return viewer is None or viewer.sees(event.visibility, event.owner)
