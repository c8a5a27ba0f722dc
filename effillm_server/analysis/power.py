"""What a test would find: the smallest shift that Welch's test detects in four runs of five."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special

Array = NDArray[np.float64]
POWER = 0.80
# Gauss-Legendre over the quantiles of each side's spread: the shift is then right to half a percent, for two processes too.
NODES = 16


def detectable_shift(sides: tuple[tuple[float, int], tuple[float, int]], alpha: float) -> float:
    """Shift of two means that a two-sided Welch test at `alpha` finds with probability POWER, in the unit of their error.

    `sides`: the true variance of each mean, and from how many values (at least 2) a run estimates it. The spreads that a run
    sees scatter, and its degrees of freedom with them: the power is the mean over both sides' chi-square distributions.
    """
    total = sides[0][0] + sides[1][0]
    if total <= 0:
        return 0.0
    (first, first_weights, first_degrees), (second, second_weights, second_degrees) = (
        (variance * _spreads(count)[0], _spreads(count)[1], count - 1) for variance, count in sides
    )
    a, b = first[:, None], second[None, :]
    degrees = (a + b) ** 2 / (a**2 / first_degrees + b**2 / second_degrees)
    # What the shift over its true error has to exceed, for every pair of spreads a run may see.
    bar = special.stdtrit(degrees, 1 - alpha / 2) * np.sqrt((a + b) / total)
    weights = first_weights[:, None] * second_weights[None, :]

    def lacking(shift: float) -> float:
        return float((weights * (special.ndtr(shift - bar) + special.ndtr(-shift - bar))).sum()) - POWER

    return math.sqrt(total) * float(optimize.brentq(lacking, 0.0, float(bar.max()) + 10.0, xtol=1e-6))


@lru_cache(maxsize=1000)
def _spreads(count: int) -> tuple[Array, Array]:
    """Quantiles of a sample variance over the true one, and their weights, which add up to 1."""
    places, weights = np.polynomial.legendre.leggauss(NODES)
    spreads: Array = special.chdtri(count - 1, 1 - (places + 1) / 2) / (count - 1)
    return spreads, weights / 2
