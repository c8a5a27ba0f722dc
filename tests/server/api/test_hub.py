"""The event hub of one process with two thousand who listen: all are told, none is waited for, nobody misses anything."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import TypeVar

import pytest
from sqlalchemy import Engine, text

from effillm_server.api import hub
from effillm_server.api.hub import Hub, Subscription
from effillm_server.ledger import queries
from effillm_server.records import EventRecord, Viewer
from tests.support.api import Api

T = TypeVar("T")
SUBSCRIBERS = 2000
ANYBODY = Viewer(None)
WITHIN_S = 30.0


@asynccontextmanager
async def listening(engine: Engine) -> AsyncIterator[Hub]:
    """A hub that follows this database."""
    made = Hub(engine, poll_s=0.2)
    made.start(asyncio.get_running_loop())
    try:
        yield made
    finally:
        await asyncio.to_thread(made.close)


def announce(engine: Engine, number: int, size: int = 0) -> None:
    """As many events, in one transaction with its notification."""
    with engine.begin() as c:
        c.execute(
            text("INSERT INTO event (kind, data) SELECT 'told', jsonb_build_object('x', repeat('x', :size))"
                 " FROM generate_series(1, :number)"),
            {"number": number, "size": size},
        )  # fmt: skip
        c.exec_driver_sql("SELECT pg_notify('effillm', '')")


def ids(chunk: bytes) -> list[int]:
    return [int(line[4:]) for line in chunk.split(b"\n") if line.startswith(b"id: ")]


async def read(subscription: Subscription, number: int, seen: list[int] | None = None) -> list[int]:
    """Ids of the first `number` events, also in `seen` as they come; fewer when the subscription ends before."""
    seen = [] if seen is None else seen
    while len(seen) < number:
        chunk = await subscription.next(WITHIN_S)
        if chunk is None:
            break
        seen += ids(chunk)
    return seen


def run(main: Callable[[], Awaitable[T]]) -> T:
    async def bounded() -> T:
        async with asyncio.timeout(4 * WITHIN_S):
            return await main()

    return asyncio.run(bounded())


def test_two_thousand_subscribers_are_told_everything_in_order(api: Api) -> None:
    async def main() -> tuple[list[list[int]], int]:
        async with listening(api.engine) as made:
            subscriptions = [await made.subscribe(None, 0, ANYBODY) for _ in range(SUBSCRIBERS)]
            assert made.subscribers == SUBSCRIBERS
            readers = [asyncio.create_task(read(one, 60)) for one in subscriptions]
            for _ in range(20):
                await asyncio.to_thread(announce, api.engine, 3)
            return await asyncio.gather(*readers), subscriptions[0].joined_at

    seen, joined_at = run(main)
    with api.engine.connect() as c:
        stored = [event.id for event in queries.events(c, joined_at, 1000)]
    assert len(stored) == 60
    assert all(one == stored for one in seen)


def test_those_who_do_not_read_are_dropped_and_nobody_waits_for_them(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "MAX_BACKLOG_BYTES", 20_000)

    async def main() -> tuple[list[list[int]], list[Subscription]]:
        async with listening(api.engine) as made:
            lazy = [await made.subscribe(None, 0, ANYBODY) for _ in range(500)]
            eager = [await made.subscribe(None, 0, ANYBODY) for _ in range(SUBSCRIBERS - 500)]
            seen: list[list[int]] = [[] for _ in eager]
            readers = [asyncio.create_task(read(one, 40, into)) for one, into in zip(eager, seen, strict=True)]
            for turn in range(1, 21):
                await asyncio.to_thread(announce, api.engine, 2, 2000)
                # Whoever reads has it at once, though a quarter of all never read.
                while not all(len(one) == 2 * turn for one in seen):
                    await asyncio.sleep(0.01)
            return await asyncio.gather(*readers), lazy

    seen, lazy = run(main)
    assert all(len(one) == 40 for one in seen)
    assert all(one.ended and one.backlog_bytes <= 20_000 for one in lazy)


def test_a_dropped_subscriber_comes_back_behind_the_last_event_it_read(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "MAX_BACKLOG_BYTES", 20_000)

    async def main() -> tuple[list[int], list[int], list[int]]:
        async with listening(api.engine) as made:
            slow, quick = await made.subscribe(None, 0, ANYBODY), await made.subscribe(None, 0, ANYBODY)
            began = quick.joined_at
            seen: list[int] = []
            following = asyncio.create_task(read(quick, 42, seen))
            for turn in range(1, 21):
                await asyncio.to_thread(announce, api.engine, 2, 2000)
                while len(seen) < 2 * turn:
                    await asyncio.sleep(0.01)
            while not slow.ended:
                await asyncio.sleep(0.01)
            before = await read(slow, 1000)
            again = await made.subscribe(None, before[-1], ANYBODY)
            with api.engine.connect() as c:
                missed = [e.id for e in queries.events(c, before[-1], 1000) if e.id <= again.joined_at]
            await asyncio.to_thread(announce, api.engine, 2)
            every = await following
            live = await read(again, len(every) - len(before) - len(missed))
            assert began < before[0]
            return before + missed, live, every

    caught_up, live, every = run(main)
    assert 0 < len(caught_up) < len(every)
    assert caught_up + live == every


def test_what_was_handed_out_to_all_is_put_together_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """For two thousand who want the same there is one text: its cost does not grow with who listens."""
    encoded: list[int] = []
    encode = hub.encode

    def counted(event: EventRecord) -> bytes:
        encoded.append(event.id)
        return encode(event)

    monkeypatch.setattr(hub, "encode", counted)

    async def main() -> list[Subscription]:
        made = Hub(None)  # type: ignore[arg-type]
        made._deliver(0, [])
        subscriptions = [await made.subscribe(None, 0, ANYBODY) for _ in range(SUBSCRIBERS)]
        made._deliver(2, [EventRecord(n, "s1", None, "x", datetime.now(UTC), {}) for n in (1, 2)])
        return subscriptions

    subscriptions = asyncio.run(main())
    assert encoded == [1, 2]
    assert len({id(one.backlog[0]) for one in subscriptions}) == 1
