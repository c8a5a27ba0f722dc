"""Summaries of small samples: moments, intervals, percentiles, outliers. Definitions in docs/statistics.md."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

LEVEL = 0.95
# What the interval of mean throughput covers once measuring has stopped by its own rule, marked iterations left out, where
# iterations are independent and normal: simulated by benchmarks/coverage.py.
STOPPED_COVERAGE = 0.91
PERCENTILES = (50, 90, 95, 99)
OUTLIER_THRESHOLD = 3.5
# 0.6745 = the normal distribution's third quartile: MAD / 0.6745 estimates sigma. 1.2533 = sqrt(pi / 2) does so for the
# mean absolute deviation, which takes over where more than half of the values are equal and MAD is 0.
MAD_SCALE = 0.6745
MEAN_AD_SCALE = math.sqrt(math.pi / 2)

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """Two bounds that hold the true value in a stated share of repetitions."""

    low: float
    high: float

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high


@dataclass(frozen=True)
class Summary:
    """Location and spread of a sample. What too few values cannot give is None."""

    n: int
    mean: float
    median: float
    std: float | None
    mean_interval: Interval | None
    median_interval: Interval | None


def summarize(values: ArrayLike, level: float = LEVEL) -> Summary | None:
    """Summary of `values`; None when there are none. Raises ValueError on NaN or infinity."""
    sample = _finite(values)
    if sample.size == 0:
        return None
    return Summary(
        n=int(sample.size),
        mean=float(sample.mean()),
        median=float(np.median(sample)),
        std=float(sample.std(ddof=1)) if sample.size > 1 else None,
        mean_interval=mean_interval(sample, level),
        median_interval=median_interval(sample, level),
    )


def mean_interval(values: ArrayLike, level: float = LEVEL) -> Interval | None:
    """Student-t interval of the mean; None below two values. Assumes independent values and a roughly normal mean."""
    sample = _finite(values)
    if sample.size < 2:
        return None
    centre = float(sample.mean())
    half = t_quantile(level, int(sample.size) - 1) * float(sample.std(ddof=1)) / math.sqrt(sample.size)
    return Interval(centre - half, centre + half)


def median_interval(values: ArrayLike, level: float = LEVEL) -> Interval | None:
    """Order-statistic interval of the median, exact for any continuous distribution, at least `level`.

    None when even the whole range covers less (at 95 %: below six values).
    """
    sample = np.sort(_finite(values))
    rank = median_rank(int(sample.size), level)
    return None if rank is None else Interval(float(sample[rank - 1]), float(sample[sample.size - rank]))


@lru_cache(maxsize=4096)
def median_rank(n: int, level: float = LEVEL) -> int | None:
    """Largest r such that the r-th smallest and r-th largest of n values enclose the median at `level`; None if none does.

    The number of values below the median is binomial(n, 1/2): coverage = 1 - 2 P(X <= r - 1).
    """
    if n < 1 or 1 - 2 * 0.5**n < level:
        return None
    from scipy import stats  # takes a second to import; rows need it, starting does not

    rank = int(stats.binom.ppf((1 - level) / 2, n, 0.5))
    return rank if 1 - 2 * float(stats.binom.cdf(rank - 1, n, 0.5)) >= level else rank - 1


@lru_cache(maxsize=4096)
def t_quantile(level: float, degrees: float) -> float:
    """Two-sided Student-t quantile: the half-width in standard errors of a `level` interval. Infinite degrees: the normal's."""
    from scipy import special

    return float(
        special.stdtrit(degrees, (1 + level) / 2) if math.isfinite(degrees) else special.ndtri((1 + level) / 2)
    )


def percentiles(values: ArrayLike, levels: Sequence[int] = PERCENTILES) -> dict[int, float | None]:
    """Percentiles by linear interpolation between order statistics (Hyndman and Fan's type 7); None when empty."""
    sample = _finite(values)
    if sample.size == 0:
        return dict.fromkeys(levels)
    return dict(zip(levels, (float(value) for value in np.percentile(sample, levels)), strict=True))


def modified_z_scores(values: ArrayLike) -> Array:
    """0.6745 (x - median) / MAD of every value (Iglewicz and Hoaglin); 0 everywhere when all are equal."""
    sample = _finite(values)
    if sample.size == 0:
        return sample
    deviation = sample - np.median(sample)
    mad = float(np.median(np.abs(deviation)))
    if mad > 0:
        return MAD_SCALE * deviation / mad
    mean_deviation = float(np.abs(deviation).mean())
    return deviation / (MEAN_AD_SCALE * mean_deviation) if mean_deviation > 0 else np.zeros_like(deviation)


def outliers(values: ArrayLike, threshold: float = OUTLIER_THRESHOLD) -> list[bool]:
    """Whether each value lies beyond `threshold` modified z-scores. Fewer than three values have no outliers."""
    scores = modified_z_scores(values)
    if scores.size < 3:
        return [False] * int(scores.size)
    return [bool(far) for far in np.abs(scores) > threshold]


def lag1_autocorrelation(values: ArrayLike) -> float | None:
    """Correlation of neighbouring iterations; None below three values or without variance.

    Positive values mean that the intervals above are too narrow: iterations share slow drifts.
    """
    sample = _finite(values)
    centred = sample - sample.mean() if sample.size else sample
    total = float(centred @ centred)
    if sample.size < 3 or total <= 0:
        return None
    return float(centred[1:] @ centred[:-1]) / total


def relative_half_width(values: ArrayLike, level: float = LEVEL) -> float | None:
    """Half-width of the mean's interval as a share of the mean; None below two values or at mean 0."""
    interval = mean_interval(values, level)
    if interval is None:
        return None
    centre = (interval.low + interval.high) / 2
    return None if centre == 0 else (interval.high - interval.low) / 2 / abs(centre)


def _finite(values: ArrayLike) -> Array:
    sample = np.asarray(values, dtype=np.float64).ravel()
    if not np.isfinite(sample).all():
        bad = int((~np.isfinite(sample)).sum())
        raise ValueError(f"expected finite numbers, found {bad} NaN or infinite among {sample.size}: drop them first")
    return sample
