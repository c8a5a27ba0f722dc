"""Time inside one function of a library, on a clock the test moves."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from effillm_worker.quantization import stopwatch
from effillm_worker.quantization.stopwatch import timed


class Clock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(stopwatch, "time", made)
    return made


def test_only_time_inside_the_function_counts_and_the_function_is_as_before(clock: Clock) -> None:
    def work(seconds: float, then: str) -> str:
        clock.now += seconds
        return then

    library = SimpleNamespace(quantize=work)
    with timed(library, "quantize") as spent:
        assert library.quantize(2.0, then="a") == "a"
        clock.now += 50
        assert library.quantize(3.0, "b") == "b"
    assert spent.seconds == 5
    assert library.quantize is work


def test_a_call_that_fails_has_taken_time_too_and_fails_as_before(clock: Clock) -> None:
    def fail() -> None:
        clock.now += 1
        raise ValueError("no")

    library = SimpleNamespace(quantize=fail)
    with pytest.raises(ValueError, match="no"), timed(library, "quantize") as spent:
        library.quantize()
    assert spent.seconds == 1
    assert library.quantize is fail
