"""The two clocks of a framework that computes on a processor or on a GPU: marks while it runs, nanoseconds afterwards."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from typing import Any, Protocol

NS_PER_MS = 1_000_000


class Clock(Protocol):
    """Marks in the order of the device."""

    def mark(self) -> Any: ...

    def resolve(self, marks: Sequence[Any]) -> list[int]: ...

    def synchronize(self) -> None: ...


class ProcessorClock:
    """A processor computes in the calling thread, so the monotonic clock is exact and there is nothing to wait for."""

    def mark(self) -> int:
        return time.perf_counter_ns()

    def resolve(self, marks: Sequence[int]) -> list[int]:
        return list(marks)

    def synchronize(self) -> None:
        return None


class EventClock:
    """Events recorded in the GPU's stream: marking neither waits for the device nor copies anything from it.

    `new_event` makes an event with timing, `wait` synchronises the device.
    """

    def __init__(self, new_event: Callable[[], Any], wait: Callable[[], None]) -> None:
        self._new_event = new_event
        self._wait = wait

    def mark(self) -> Any:
        event = self._new_event()
        event.record()
        return event

    def resolve(self, marks: Sequence[Any]) -> list[int]:
        # From neighbour to neighbour: elapsed_time is a float32 of milliseconds and would lose microseconds over a long
        # generation. The clock starts at the first mark; only differences mean anything.
        steps = (round(earlier.elapsed_time(later) * NS_PER_MS) for earlier, later in pairwise(marks))
        return list(accumulate(steps, initial=0))

    def synchronize(self) -> None:
        self._wait()
