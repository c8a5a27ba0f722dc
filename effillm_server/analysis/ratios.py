"""Ratios of estimates: the interval of A / B on logarithms, with the machine's noise where one process stands alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from scipy import special

from effillm_server.analysis.cells import Cell, Estimate
from effillm_server.analysis.facts import Facts
from effillm_server.analysis.statistics import LEVEL, t_quantile


@dataclass(frozen=True)
class Ratio:
    """A ratio, its 95 % interval and the two-sided p-value of "it is 1". Unadjusted for other comparisons."""

    value: float
    low: float
    high: float
    p: float

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


def ratio(of: Estimate, to: Estimate, facts: Facts, factor: float = 1.0) -> Ratio | None:
    """factor · of / to. None where either is not positive.

    The normal distribution where the noise between processes is given beforehand, Student's t with Welch's degrees of
    freedom where it was seen (several processes on both sides).
    """
    if of.value <= 0 or to.value <= 0:
        return None
    parts = [
        (variance, estimate.processes) for variance, estimate in zip(variances(of, to, facts), (of, to), strict=True)
    ]
    error = math.sqrt(sum(variance for variance, _ in parts))
    degrees = _degrees(parts, facts)
    log = math.log(factor * of.value / to.value)
    half = t_quantile(LEVEL, degrees) * error
    return Ratio(
        math.exp(log), math.exp(log - half), math.exp(log + half), two_sided_p(log - math.log(factor), error, degrees)
    )


def variances(of: Estimate, to: Estimate, facts: Facts) -> tuple[float, float]:
    """Variance of each side's logarithm. Where one side has a single process, the machine's noise stands for both."""
    sides = (of, to)
    if all(estimate.processes > 1 for estimate in sides):
        return of.relative_se**2, to.relative_se**2
    known = facts.process_sd**2
    one, other = (
        max(estimate.relative_se**2, known / estimate.processes)
        if estimate.processes > 1
        else estimate.relative_se**2 + known
        for estimate in sides
    )
    return one, other


def two_sided_p(difference: float, error: float, degrees: float) -> float:
    """p of a difference this far from 0; without any error, 1 for no difference and 0 for one."""
    if error <= 0:
        return 1.0 if difference == 0 else 0.0
    score = abs(difference) / error
    return 2 * float(special.stdtr(degrees, -score) if math.isfinite(degrees) else special.ndtr(-score))


def _degrees(parts: list[tuple[float, int]], facts: Facts) -> float:
    if any(processes == 1 for _, processes in parts):
        return float(facts.noise_floor_degrees) if facts.noise_floor_degrees else math.inf
    total = sum(variance for variance, _ in parts)
    below = sum(variance**2 / (processes - 1) for variance, processes in parts)
    return total**2 / below if below > 0 else math.inf


def cell_ratio(of: Cell, to: Cell, metric: str, facts: Facts, factor: float = 1.0) -> Ratio | None:
    """Ratio of one metric between two cells; None where either lacks it."""
    top, bottom = of.estimate(metric), to.estimate(metric)
    return None if top is None or bottom is None else ratio(top, bottom, facts, factor)


def within(found: Mapping[str, Any], low: float, high: float) -> str:
    """`inside` when the interval lies in [low, high], `outside` when it lies wholly elsewhere, else `open`."""
    lower, upper = found["low"], found["high"]
    if (lower is not None and lower > high) or (upper is not None and upper < low):
        return "outside"
    return "inside" if lower is not None and upper is not None and low <= lower and upper <= high else "open"
