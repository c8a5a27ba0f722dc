"""Quantiles of Student's t in the standard library: the child measures in foreign runtimes that may lack scipy."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from functools import lru_cache

CONFIDENCE = 0.95


@lru_cache(maxsize=4096)
def quantile(probability: float, degrees: int) -> float:
    """The t below which `probability` of Student's distribution with `degrees` of freedom lies.

    Raises ValueError unless 0 < probability < 1 and degrees >= 1.
    """
    if not 0 < probability < 1 or degrees < 1:
        raise ValueError(f"expected 0 < probability < 1 and degrees >= 1, found {probability} and {degrees}")
    if probability == 0.5:
        return 0.0
    if probability < 0.5:
        return -quantile(1 - probability, degrees)
    low, high = 0.0, 2.0
    while distribution(high, degrees) < probability:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if distribution(middle, degrees) < probability else (low, middle)
    return (low + high) / 2


def distribution(t: float, degrees: int) -> float:
    """P(T <= t) of Student's distribution, by the regularised incomplete beta function."""
    tail = _incomplete_beta(degrees / 2, 0.5, degrees / (degrees + t * t)) / 2
    return 1 - tail if t > 0 else tail


def half_width(values: Sequence[float], confidence: float = CONFIDENCE) -> float:
    """Half-width of the confidence interval of the mean of `values`; infinite for fewer than two."""
    count = len(values)
    if count < 2:
        return math.inf
    return quantile((1 + confidence) / 2, count - 1) * statistics.stdev(values) / math.sqrt(count)


def _incomplete_beta(a: float, b: float, x: float) -> float:
    if x <= 0 or x >= 1:
        return 0.0 if x <= 0 else 1.0
    if x > (a + 1) / (a + b + 2):
        return 1 - _incomplete_beta(b, a, 1 - x)
    logarithm = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    return math.exp(logarithm) * _continued_fraction(a, b, x) / a


def _continued_fraction(a: float, b: float, x: float) -> float:
    """Lentz's evaluation of the incomplete beta function's continued fraction (DLMF 8.17.22)."""
    tiny, c = 1e-300, 1.0
    d = 1 / _nonzero(1 - (a + b) * x / (a + 1), tiny)
    result = d
    for m in range(1, 10_000):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for step in (even, odd):
            d = 1 / _nonzero(1 + step * d, tiny)
            c = _nonzero(1 + step / c, tiny)
            result *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return result


def _nonzero(value: float, tiny: float) -> float:
    return value if abs(value) > tiny else tiny
