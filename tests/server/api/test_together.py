from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from effillm_server.api.together import Together


class Clock:
    """What is read: a number that the tests move on, and a gate that holds a reader up."""

    def __init__(self) -> None:
        self.value, self.reads = 0, 0
        self.begun, self.gate = threading.Semaphore(0), threading.Event()
        self.gate.set()

    def read(self) -> int:
        self.reads += 1
        seen = self.value
        self.begun.release()
        assert self.gate.wait(10)
        return seen


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(main(), 10))


async def begun(clock: Clock) -> None:
    assert await asyncio.to_thread(clock.begun.acquire, timeout=10)


async def settled() -> None:
    """Every task that can go on has."""
    for _ in range(5):
        await asyncio.sleep(0)


def test_those_who_ask_while_one_answer_is_made_share_the_next_one_and_see_what_was_written_before_they_asked() -> None:
    async def main() -> None:
        clock, together = Clock(), Together(crowd=1000)
        clock.gate.clear()
        first = asyncio.create_task(together.get("x", clock.read))
        await begun(clock)
        clock.value = 1
        later = [asyncio.create_task(together.get("x", clock.read)) for _ in range(5)]
        await settled()
        assert clock.reads == 1
        clock.gate.set()
        assert await first == 0
        assert await asyncio.gather(*later) == [1] * 5
        assert clock.reads == 2

    run(main)


def test_different_questions_do_not_wait_for_each_other() -> None:
    async def main() -> None:
        slow, quick, together = Clock(), Clock(), Together()
        slow.gate.clear()
        waiting = asyncio.create_task(together.get("slow", slow.read))
        await begun(slow)
        assert await together.get("quick", quick.read) == 0
        slow.gate.set()
        assert await waiting == 0

    run(main)


def test_what_goes_wrong_goes_wrong_for_all_who_asked_and_not_for_the_next() -> None:
    async def main() -> None:
        failures = [LookupError("no such thing")]

        def read() -> str:
            if failures:
                raise failures.pop()
            return "there"

        together = Together()
        asked = [asyncio.create_task(together.get("x", read)) for _ in range(3)]
        assert [str(found) for found in await asyncio.gather(*asked, return_exceptions=True)] == ["no such thing"] * 3
        assert await together.get("x", read) == "there"

    run(main)


def test_one_who_leaves_does_not_take_the_answer_from_the_others() -> None:
    async def main() -> None:
        clock, together = Clock(), Together()
        clock.gate.clear()
        leaving, staying = (asyncio.create_task(together.get("x", clock.read)) for _ in range(2))
        await begun(clock)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        clock.gate.set()
        assert await staying == 0
        assert clock.reads == 1

    run(main)


def test_in_a_crowd_one_question_keeps_its_pace_and_alone_nobody_waits() -> None:
    async def main() -> None:
        clock, together = Clock(), Together(crowd=3, pace_s=3600)
        for expected in (1, 2):
            await together.get("x", clock.read)
            assert clock.reads == expected
        crowd = [asyncio.create_task(together.get("x", clock.read)) for _ in range(4)]
        await settled()
        assert clock.reads == 2
        assert not any(asker.done() for asker in crowd)
        assert await together.get("y", clock.read) == 0
        for asker in crowd:
            asker.cancel()

    run(main)


def test_what_nobody_asks_any_more_is_forgotten() -> None:
    async def main() -> None:
        clock, together = Clock(), Together(pace_s=0)
        await asyncio.gather(*(together.get(n, clock.read) for n in range(10)))
        while together._lines:  # `run` ends a test that waits for ever
            await asyncio.sleep(0)

    run(main)
