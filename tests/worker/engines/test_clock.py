from __future__ import annotations

import time
from dataclasses import dataclass

import pytest

from effillm_worker.engines.clock import EventClock, ProcessorClock


@dataclass
class FakeStream:
    """A GPU's stream: events take the device's time when they are recorded, and may be read once it has caught up."""

    now_ms: float = 0.0
    synchronized: int = 0
    recorded: int = 0

    def synchronize(self) -> None:
        self.synchronized += 1


@dataclass
class FakeEvent:
    stream: FakeStream
    at_ms: float = -1.0

    def record(self) -> None:
        self.stream.recorded += 1
        self.at_ms = self.stream.now_ms

    def elapsed_time(self, end: FakeEvent) -> float:
        assert self.stream.synchronized, "read before the device was waited for"
        return end.at_ms - self.at_ms


def test_gpu_marks_are_events_that_wait_for_nothing() -> None:
    stream = FakeStream()
    clock = EventClock(lambda: FakeEvent(stream), stream.synchronize)
    marks = []
    for at_ms in (5.0, 7.5, 8.0, 8.25):
        stream.now_ms = at_ms
        marks.append(clock.mark())
    assert stream.recorded == 4
    assert stream.synchronized == 0
    clock.synchronize()
    assert clock.resolve(marks) == [0, 2_500_000, 3_000_000, 3_250_000]


def test_gpu_times_keep_their_resolution_over_a_long_generation() -> None:
    stream = FakeStream()
    clock = EventClock(lambda: FakeEvent(stream), stream.synchronize)
    marks = []
    for step in range(100_001):
        stream.now_ms = step * 0.125
        marks.append(clock.mark())
    clock.synchronize()
    assert clock.resolve(marks)[-1] == pytest.approx(12_500_000_000, abs=100_000)


def test_processor_marks_are_the_monotonic_clock() -> None:
    clock = ProcessorClock()
    before = time.perf_counter_ns()
    marks = [clock.mark(), clock.mark()]
    assert before <= marks[0] <= marks[1] <= time.perf_counter_ns()
    assert clock.resolve(marks) == marks
