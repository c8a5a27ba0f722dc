"""The cell's time budget: whether one more iteration fits, and how much would be needed when the minimum does not."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field

from effillm_server.contract.outcome import InfeasibleReason
from effillm_server.contract.sweep import MeasurementPlan
from effillm_server.contract.units import format_seconds
from effillm_worker.measure.refusal import Refusal

RECENT = 5


@dataclass
class Budget:
    """Time left of `plan.time_limit_s`, and what iterations cost by those seen so far.

    A measured iteration brings a first-token iteration with it, and one generation is kept for memory. Costs are the
    timelines' own: what lies between two iterations is too short to matter.
    """

    plan: MeasurementPlan
    clock: Callable[[], float]
    _generation_s: list[float] = field(default_factory=list)
    _first_token_s: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._begin = self.clock()

    def learn(self, generation_s: float, first_token_s: float) -> None:
        """Take in what one full generation took and how long its first token."""
        self._generation_s.append(generation_s)
        self._first_token_s.append(first_token_s)

    def allows_warm_up(self) -> bool:
        """One more warm-up iteration leaves time for the least that must be measured."""
        return self._left() >= self._generation() + self._cost(self.plan.iterations.min)

    def allows_measured(self, done: int) -> bool:
        """One more measured iteration fits, with the first-token iterations and the memory iteration still to come."""
        pending_first_tokens = (done + 1) * self._first_token()
        return self._left() >= 2 * self._generation() + pending_first_tokens

    def check_minimum(self, *, warmed_up: int, measured: int = 0) -> None:
        """Raises Refusal(time_limit), saying how much is needed, when the least that must be measured cannot fit.

        Judged by the fastest generation seen, and not by a first one alone: a cold one must not refuse a cell that fits.
        """
        plan = self.plan
        if len(self._generation_s) == 1 and self._left() > 0:
            return
        fastest, first = min(self._generation_s), min(self._first_token_s)
        warm_up_left = max(0, plan.warmup.min - warmed_up)
        measured_left = max(0, plan.iterations.min - measured)
        todo = (warm_up_left + measured_left + 1) * fastest + max(plan.iterations.min, measured) * first
        if measured_left == 0 or todo <= self._left():
            return
        needed = math.ceil((self.clock() - self._begin + todo) * 1.2)
        raise Refusal(
            InfeasibleReason.TIME_LIMIT,
            f"the cell's time limit is {format_seconds(plan.time_limit_s)}; {plan.warmup.min} warm-up, {plan.iterations.min} "
            f"measured, as many first-token and one memory iteration need about {format_seconds(needed)} here "
            f"({format_seconds(fastest)} a generation): set measurement.time_limit_s to at least {needed}, or generate fewer tokens",
        )

    def _left(self) -> float:
        return self.plan.time_limit_s - (self.clock() - self._begin)

    def _cost(self, measured: int) -> float:
        return (measured + 1) * self._generation() + measured * self._first_token()

    def _generation(self) -> float:
        return statistics.median(self._generation_s[-RECENT:])

    def _first_token(self) -> float:
        return statistics.median(self._first_token_s[-RECENT:])
