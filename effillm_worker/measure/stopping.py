"""When to stop: warm-up until steady, measured iterations until the interval is tight, outliers found and replaced."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from effillm_server.contract.outcome import StopReason
from effillm_server.contract.sweep import MIN_ITERATIONS
from effillm_worker.measure.student import half_width

STEADY_SPAN = 3
STEADY_TOLERANCE = 0.05
OUTLIER_SCORE = 3.5
REPLACEMENTS_BEYOND = 2  # a plan of exactly five iterations could not replace one otherwise


def is_steady(e2e_s: Sequence[float]) -> bool:
    """The last three iterations lie within 5 % of their median."""
    last = e2e_s[-STEADY_SPAN:]
    middle = statistics.median(last) if len(last) == STEADY_SPAN else 0.0
    return len(last) == STEADY_SPAN and all(abs(value - middle) <= STEADY_TOLERANCE * middle for value in last)


def outliers(values: Sequence[float]) -> list[bool]:
    """Which values have a modified z-score |0.6745 (x - median) / MAD| above 3.5 (Iglewicz and Hoaglin 1993).

    Where more than half the values are equal the MAD is 0; then the mean absolute deviation stands in, scaled by
    1.253314 as the same source has it.
    """
    if len(values) < 3:
        return [False] * len(values)
    middle = statistics.median(values)
    deviations = [abs(value - middle) for value in values]
    mad = statistics.median(deviations)
    scale = mad / 0.6745 if mad > 0 else 1.253314 * statistics.fmean(deviations)
    return [scale > 0 and deviation / scale > OUTLIER_SCORE for deviation in deviations]


class Comparison(StrEnum):
    """What an iteration's time is compared with in the search for outliers."""

    ALL = "all iterations"
    SAME_BATCH = "iterations of the same batch"


def outliers_of(e2e_s: Sequence[float], per_pass: int) -> list[bool]:
    """Outliers among iterations that cycle through `per_pass` different batches.

    Batches of a text workload differ in length, so each is compared with its own median; with fewer than three passes
    there is nothing to compare with and nothing is marked.
    """
    if per_pass == 1:
        return outliers(e2e_s)
    if len(e2e_s) < 3 * per_pass:
        return [False] * len(e2e_s)
    middles = [statistics.median(e2e_s[batch::per_pass]) for batch in range(per_pass)]
    return outliers([value / middles[index % per_pass] for index, value in enumerate(e2e_s)])


@dataclass(frozen=True)
class Limits:
    """Measured iterations: between `least` and `most`, whole passes of `per_pass` batches, interval to be reached."""

    least: int
    most: int
    relative_half_width: float
    per_pass: int = 1

    @classmethod
    def in_passes(cls, least: int, most: int, relative_half_width: float, per_pass: int) -> Limits:
        """Limits rounded up to whole passes, so that every configuration is measured on the same prompts."""
        return cls(_round_up(least, per_pass), _round_up(most, per_pass), relative_half_width, per_pass)


@dataclass
class Stopping:
    """The stopping rule fed one iteration at a time; `reason` is None as long as more are needed.

    Stops once the 95 % interval of mean throughput over the unmarked iterations is tight enough, at least `least` of
    them are there, and every outlier has been given one more iteration; or at `most`. Where the outliers among `most` leave
    fewer than five to count, up to two more are run, rounded up to whole passes.
    """

    limits: Limits
    e2e_s: list[float] = field(default_factory=list)
    marked: list[bool] = field(default_factory=list)
    tight_at: int | None = None

    def add(self, e2e_s: float) -> StopReason | None:
        """Take in one iteration; why to stop now, or None."""
        self.e2e_s.append(e2e_s)
        self.marked = outliers_of(self.e2e_s, self.limits.per_pass)
        count = len(self.e2e_s)
        if count < self.limits.least or count % self.limits.per_pass:
            return None
        tight = self.relative_half_width <= self.limits.relative_half_width
        if tight and self.tight_at is None:
            self.tight_at = count
        if tight and self.tight_at is not None and count >= self.tight_at + self._owed():
            return StopReason.CONVERGED
        beyond = 0 if self.counted >= MIN_ITERATIONS else _round_up(REPLACEMENTS_BEYOND, self.limits.per_pass)
        return StopReason.MAX_ITERATIONS if count >= self.limits.most + beyond else None

    @property
    def counted(self) -> int:
        """Iterations that the headline statistics rest on: the unmarked ones."""
        return len(self.e2e_s) - sum(self.marked)

    @property
    def relative_half_width(self) -> float:
        """Half-width of the 95 % interval of mean throughput over the unmarked iterations, as a share of the mean."""
        speeds = [1 / value for value, marked in zip(self.e2e_s, self.marked, strict=True) if not marked]
        return half_width(speeds) / statistics.fmean(speeds)

    def _owed(self) -> int:
        return _round_up(sum(self.marked), self.limits.per_pass)


def _round_up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple
