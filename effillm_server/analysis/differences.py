"""Is A different from B, or the same? One pair of samples of process results, on logarithms.

The rule: a single process on either side, the machine's own noise between processes decides (normal, or Student's t where
the noise was measured); several on both sides, Welch's t-test; eight or more on both sides of which one is clearly not
normal (Shapiro-Wilk p < 0.05), Mann-Whitney with the Hodges-Lehmann shift.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

from effillm_server.analysis.cells import Cell, Estimate, value_of
from effillm_server.analysis.facts import Facts
from effillm_server.analysis.power import POWER, detectable_shift
from effillm_server.analysis.ratios import two_sided_p, variances
from effillm_server.analysis.statistics import LEVEL, t_quantile

Array = NDArray[np.float64]
NONPARAMETRIC_FROM = 8
SHAPIRO_P = 0.05
NOISE, WELCH, MANN_WHITNEY = "noise floor", "Welch", "Mann-Whitney"


@dataclass(frozen=True)
class Difference:
    """B against A on logarithms: shift with its interval, p of "no shift", p of "the shift exceeds the margin" (TOST).

    `error` is the standard error of the shift, `degrees` its freedom (infinite: normal). `spreads`, of Welch's test: the
    variance of each side's mean and its number of processes.
    """

    test: str
    shift: float
    low: float
    high: float
    p_different: float
    p_equivalent: float
    error: float
    degrees: float
    effect_size: float | None
    spreads: tuple[tuple[float, int], tuple[float, int]] | None = None

    def minimum_detectable(self, alpha: float) -> float:
        """Smallest relative change a test at `alpha` would find in four runs of five, from this pair's own spread."""
        if self.spreads is not None:
            return math.expm1(detectable_shift(self.spreads, alpha))
        finite = math.isfinite(self.degrees)
        power = special.stdtrit(self.degrees, POWER) if finite else special.ndtri(POWER)
        return math.expm1((t_quantile(1 - alpha, self.degrees) + float(power)) * self.error)


def difference(a: Cell, b: Cell, metric: str, margin: float, facts: Facts) -> Difference | None:
    """B against A; None where either lacks a positive value of `metric`. `margin` is a share: 0.03 for 3 %."""
    of, to = b.estimate(metric), a.estimate(metric)
    if of is None or to is None or of.value <= 0 or to.value <= 0:
        return None
    bound = math.log1p(margin)
    if min(of.processes, to.processes) == 1:
        return _by_noise(of, to, bound, facts)
    sample_a, sample_b = (np.log(_positive(cell, metric)) for cell in (a, b))
    if _is_nonparametric(sample_a, sample_b):
        return _mann_whitney(sample_a, sample_b, bound)
    return _welch(sample_a, sample_b, bound)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order given: reject at alpha keeps the family-wise error below alpha."""
    order = np.argsort(p_values)
    adjusted, running = np.empty(len(p_values)), 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return [float(value) for value in adjusted]


def hedges_g(a: Array, b: Array) -> float | None:
    """Standardised difference of b to a, corrected for small samples; None without spread."""
    degrees = a.size + b.size - 2
    pooled = math.sqrt(((a.size - 1) * a.var(ddof=1) + (b.size - 1) * b.var(ddof=1)) / degrees) if degrees > 0 else 0.0
    return float((b.mean() - a.mean()) / pooled * (1 - 3 / (4 * degrees - 1))) if pooled > 0 else None


def _by_noise(of: Estimate, to: Estimate, bound: float, facts: Facts) -> Difference:
    error = math.sqrt(sum(variances(of, to, facts)))
    degrees = float(facts.noise_floor_degrees) if facts.noise_floor_degrees else math.inf
    return _from_error(NOISE, math.log(of.value / to.value), error, degrees, bound, None)


def _welch(a: Array, b: Array, bound: float) -> Difference:
    spread_a, spread_b = a.var(ddof=1) / a.size, b.var(ddof=1) / b.size
    total = float(spread_a + spread_b)
    below = float(spread_a**2 / (a.size - 1) + spread_b**2 / (b.size - 1))
    degrees = total**2 / below if below > 0 else math.inf
    found = _from_error(WELCH, float(b.mean() - a.mean()), math.sqrt(total), degrees, bound, hedges_g(a, b))
    return replace(found, spreads=((float(spread_a), a.size), (float(spread_b), b.size)))


def _from_error(
    test: str, shift: float, error: float, degrees: float, bound: float, effect: float | None
) -> Difference:
    finite = math.isfinite(degrees)
    half = t_quantile(LEVEL, degrees) * error
    if error > 0:
        score = (abs(shift) - bound) / error
        equivalent = float(special.stdtr(degrees, score) if finite else special.ndtr(score))
    else:
        equivalent = 0.0 if abs(shift) < bound else 1.0
    different = two_sided_p(shift, error, degrees)
    return Difference(test, shift, shift - half, shift + half, different, equivalent, error, degrees, effect)


def _mann_whitney(a: Array, b: Array, bound: float) -> Difference:
    shifts = np.sort((b[:, None] - a[None, :]).ravel())
    shift = float(np.median(shifts))
    n, m = a.size, b.size
    spread = math.sqrt(n * m * (n + m + 1) / 12)
    rank = max(math.floor(n * m / 2 - t_quantile(LEVEL, math.inf) * spread), 0)
    low, high = float(shifts[rank]), float(shifts[-1 - rank])
    above = stats.mannwhitneyu(b + bound, a, alternative="greater").pvalue
    below = stats.mannwhitneyu(b - bound, a, alternative="less").pvalue
    error = (high - low) / 2 / t_quantile(LEVEL, math.inf)
    p = float(stats.mannwhitneyu(b, a).pvalue)
    return Difference(MANN_WHITNEY, shift, low, high, p, float(max(above, below)), error, math.inf, hedges_g(a, b))


def _is_nonparametric(a: Array, b: Array) -> bool:
    if min(a.size, b.size) < NONPARAMETRIC_FROM:
        return False
    return any(np.ptp(sample) > 0 and stats.shapiro(sample).pvalue < SHAPIRO_P for sample in (a, b))


def _positive(cell: Cell, metric: str) -> Array:
    values = (value_of(row, metric) for row in cell.rows)
    return np.array([value for value in values if value is not None and value > 0])
