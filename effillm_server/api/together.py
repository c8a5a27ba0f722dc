"""One question asked by many at once, answered once: who waits for an answer gets what is read after they asked."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from starlette.concurrency import run_in_threadpool

T = TypeVar("T")

# So many questions under way at once make a crowd, and in a crowd one question is answered so often at most.
CROWD = 4
PACE_S = 0.05


@dataclass
class _Line:
    """Those who ask the same: the answer being made, the one to be made next for all who came since, when one was begun."""

    current: asyncio.Task[Any] | None = None
    next: asyncio.Task[Any] | None = None
    begun_s: float = float("-inf")


class Together:
    """Makes answers in threads, one at a time for each key.

    An answer is shared only by those who had asked before it was begun: nobody sees less than what was stored when they asked.
    Nobody waits but in a crowd.
    """

    def __init__(self, crowd: int = CROWD, pace_s: float = PACE_S) -> None:
        self._crowd, self._pace_s = crowd, pace_s
        self._asking = 0
        self._lines: dict[Hashable, _Line] = {}

    async def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` returns or raises, called after this was asked; all who give the same key mean the same question."""
        line = self._lines.setdefault(key, _Line())
        if line.next is None:
            line.next = asyncio.create_task(self._turn(key, line, make))
            line.next.add_done_callback(_heard)
        self._asking += 1
        try:
            # One of them leaving does not take the answer from the others.
            return cast(T, await asyncio.shield(line.next))
        finally:
            self._asking -= 1

    async def _turn(self, key: Hashable, line: _Line, make: Callable[[], T]) -> T:
        if line.current is not None:
            await asyncio.wait({line.current})
        loop = asyncio.get_running_loop()
        if self._asking > self._crowd and (early_s := line.begun_s + self._pace_s - loop.time()) > 0:
            await asyncio.sleep(early_s)
        # From here on whoever comes may have seen something newer, and waits for the turn after this one.
        line.current, line.next, line.begun_s = line.next, None, loop.time()
        try:
            return await run_in_threadpool(make)
        finally:
            loop.call_later(self._pace_s, self._forget, key, line)

    def _forget(self, key: Hashable, line: _Line) -> None:
        """Drop a line at which nobody stands any more."""
        if line.next is None and line.current is not None and line.current.done() and self._lines.get(key) is line:
            del self._lines[key]


def _heard(turn: asyncio.Task[Any]) -> None:
    """Look at what went wrong, or asyncio complains of it when everybody who asked has left."""
    if not turn.cancelled():
        turn.exception()
