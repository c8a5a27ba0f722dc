"""The event stream: server-sent events, resumed by Last-Event-ID; a subscriber that does not read is dropped."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Annotated

import sqlalchemy
from fastapi import APIRouter, Header, Query
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from effillm_server.api import examples
from effillm_server.api.auth import Caller, Reader, is_still_known
from effillm_server.api.documented import problems, raw
from effillm_server.api.hub import Subscription, encode
from effillm_server.api.services import Served, Services, sweep_of
from effillm_server.ledger import queries
from effillm_server.records import EventRecord, Viewer

KEEP_ALIVE_S = 15.0
RECHECK_S = 2.0
READ_AGAIN_S = 0.5
SEND_TIMEOUT_S = 10.0
RETRY_MS = 2000
CATCH_UP_BATCH = 1000
MEDIA_TYPE = "text/event-stream"
router = APIRouter(prefix="/v1", tags=["events"])

EVENT_SCHEMA = {
    "type": "object",
    "description": "one server-sent event",
    "properties": {
        "id": {"type": "string", "description": "send it as Last-Event-ID to go on behind this event"},
        "event": {"type": "string", "description": "its kind"},
        "data": {"type": "string", "description": "an EventView as JSON"},
    },
}

EventId = Annotated[int | None, Query(ge=0, le=2**63 - 1, description="begin behind this event; 0: from the first")]


class EventStream(Response):
    """Sends what `chunks` yields until it ends, the client leaves, or it does not take a chunk in time."""

    media_type = MEDIA_TYPE

    def __init__(self, chunks: AsyncIterator[bytes], close: Callable[[], None]) -> None:
        super().__init__(headers={"X-Accel-Buffering": "no", "Cache-Control": "no-store", "Connection": "close"})
        del self.headers["content-length"]
        self.chunks = chunks
        self.close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sending = asyncio.ensure_future(self._send_all(send))
        leaving = asyncio.ensure_future(_left(receive))
        try:
            await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.close()
            for task in (sending, leaving):
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        # Without the last message the server cuts the connection, which is what a client that does not read gets.
        with suppress(TimeoutError, OSError):
            async for chunk in self.chunks:
                async with asyncio.timeout(SEND_TIMEOUT_S):
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
            async with asyncio.timeout(SEND_TIMEOUT_S):
                await send({"type": "http.response.body", "body": b"", "more_body": False})


@router.get(
    "/events",
    summary="Follow what happens, as server-sent events",
    response_class=Response,
    responses={
        **problems(404),
        200: raw(MEDIA_TYPE, examples.EVENT_STREAM, "events as they happen", EVENT_SCHEMA),
    },
)
async def follow(
    served: Served,
    who: Reader,
    sweep: Annotated[
        str | None, Query(pattern=r"^[A-Za-z0-9_-]{1,64}$", description="only this sweep", examples=[examples.SWEEP_ID])
    ] = None,
    after: EventId = None,
    follow: Annotated[bool, Query(description="false: end once everything stored has been sent")] = True,
    last_event_id: Annotated[
        int | None, Header(ge=0, le=2**63 - 1, description="sent by clients that come back")
    ] = None,
) -> Response:
    """Without `after` or Last-Event-ID the stream begins with what happens next."""
    if sweep is not None:
        await run_in_threadpool(_must_exist, served, sweep, who)
    behind = after if last_event_id is None else last_event_id
    if behind is None:
        behind = await run_in_threadpool(_last, served)
    if not follow:
        return EventStream(_stored(served, who.viewer, sweep, behind, None), lambda: None)
    subscription = await served.hub.subscribe(sweep, behind, who.viewer)
    return EventStream(_chunks(served, who, subscription), lambda: served.hub.unsubscribe(subscription))


def _must_exist(served: Services, sweep_id: str, who: Caller) -> None:
    with served.reading() as connection:
        sweep_of(connection, sweep_id, who.viewer)


def _last(served: Services) -> int:
    with served.reading() as connection:
        return queries.last_event_id(connection)


async def _chunks(served: Services, who: Caller, subscription: Subscription) -> AsyncIterator[bytes]:
    yield f"retry: {RETRY_MS}\n\n".encode()
    stored = _stored(served, who.viewer, subscription.sweep_id, subscription.seen, subscription.joined_at)
    async for chunk in stored:
        yield chunk
    checked_at = said_at = time.monotonic()
    while True:
        arrived = await subscription.next(RECHECK_S)
        now = time.monotonic()
        if who.key_id is not None and now - checked_at >= RECHECK_S:
            # A key revoked while its stream is open ends the stream too.
            if not await _is_still_known(served, who):
                return
            checked_at = now
        if arrived is None:
            return
        if arrived or now - said_at >= KEEP_ALIVE_S:
            said_at = now
            yield arrived or b": still here\n\n"


async def _is_still_known(served: Services, who: Caller) -> bool:
    """Whether the stream's key or session is still good; of many streams of one key, one asks the database for all."""
    if who.session is None and who.key_id is not None and served.keyring.was_valid_just_now(who.key_id):
        return True
    try:
        return await run_in_threadpool(is_still_known, served.keyring, who)
    except sqlalchemy.exc.OperationalError:
        # The database is away, and with it everything that there would be to tell. Asked again when it may be back.
        return True


async def _stored(
    served: Services, viewer: Viewer, sweep_id: str | None, behind: int, until: int | None
) -> AsyncIterator[bytes]:
    """The stored events behind `behind` up to `until`, where a subscription takes over; None: all there are."""
    while until is None or behind < until:
        try:
            events = await run_in_threadpool(_read, served, behind, sweep_id)
        except sqlalchemy.exc.OperationalError:
            if until is None:
                # A stream that was to end by itself is cut: its reader sees that this was not all.
                raise
            # A live one goes on when the database is back; the words tell a reader, and us, that the other is there.
            yield b": the database is away\n\n"
            await asyncio.sleep(READ_AGAIN_S)
            continue
        due = [event for event in events if until is None or event.id <= until]
        if due:
            yield b"".join(encode(event) for event in due if viewer.sees(event.visibility, event.owner))
        if len(due) < CATCH_UP_BATCH:
            return
        behind = due[-1].id


def _read(served: Services, behind: int, sweep_id: str | None) -> list[EventRecord]:
    with served.reading() as connection:
        return queries.events(connection, behind, CATCH_UP_BATCH, sweep_id)


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
