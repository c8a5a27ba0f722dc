"""The curves that are fitted, by weighted least squares, with intervals by profile likelihood.

Three forms cover the laws of the paper: power y = a x^p, straight y = a + b x, offset power y = k + v x^w. The noise of
timings is relative, so residuals are ln y - ln f for the power and (y - f) / f for the others; memory's is absolute. The
scale of the noise is estimated from the residuals; the weights say only which points are surer than others.

Power and straight are linear in their parameters on the scale of their residuals: the profile likelihood of a parameter is
then a parabola and its interval Student's t. The offset power is linear in k and v once w is fixed: its profile is traced
along w, and each slice of it is a parabola in k and in v.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

from effillm_server.analysis.statistics import LEVEL, t_quantile

Array = NDArray[np.float64]
RELATIVE, ABSOLUTE = "relative", "absolute"
REWEIGHTINGS = 4
EXPONENTS = np.linspace(0.02, 4.0, 400)
# Below this share of the data's own scale a residual is rounding, not noise: a perfect fit keeps intervals of no width.
NEGLIGIBLE = 1e-12
TINY = 1e-300
SLICES = 201


@dataclass(frozen=True)
class Parameter:
    """A fitted value and its interval; a bound that the data do not set is None."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Fitted:
    """Parameters in order, the curve, and residuals divided by their assumed standard deviation, shape [n]."""

    parameters: tuple[Parameter, ...]
    predict: Callable[[Array], Array]
    residuals: Array
    r2: float

    @property
    def degrees(self) -> int:
        return int(self.residuals.size) - len(self.parameters)

    @property
    def scatter(self) -> float:
        """Residual standard deviation in units of the assumed one; 1 when the points scatter as their errors say."""
        return math.sqrt(float(self.residuals @ self.residuals) / self.degrees) if self.degrees > 0 else math.nan


class Form(Protocol):
    """A curve family: its parameters' names and its fit."""

    @property
    def names(self) -> tuple[str, ...]: ...

    def fit(self, x: Array, y: Array, sigma: Array, level: float = LEVEL) -> Fitted: ...

    def curve(self, x: Array, y: Array, sigma: Array) -> Callable[[Array], Array]:
        """The fitted curve alone, without intervals: for leaving points out."""
        ...


@dataclass(frozen=True)
class Power:
    """y = a x^p, fitted on logarithms. `sigma` is the relative standard deviation of each y."""

    names: tuple[str, str]

    def fit(self, x: Array, y: Array, sigma: Array, level: float = LEVEL) -> Fitted:
        centre = float(np.log(x).mean())
        design = np.column_stack([np.ones_like(x), np.log(x) - centre])
        best, covariance, residuals = linear(design, np.log(y), sigma)
        half = t_quantile(level, len(x) - 2) if len(x) > 2 else math.nan
        slope = float(best[1])
        # The factor belongs to x = 1, far from the data: its variance follows from the centred fit.
        shift = np.array([1.0, -centre])
        level_log, error = float(shift @ best), half * math.sqrt(float(shift @ covariance @ shift))
        factor = Parameter(math.exp(level_log), math.exp(level_log - error), math.exp(level_log + error))
        spread = half * math.sqrt(float(covariance[1, 1]))
        return Fitted(
            (factor, Parameter(slope, slope - spread, slope + spread)),
            lambda at: np.exp(level_log + slope * np.log(at)),
            residuals,
            _r2(np.log(y), level_log + slope * np.log(x), sigma),
        )

    def curve(self, x: Array, y: Array, sigma: Array) -> Callable[[Array], Array]:
        return self.fit(x, y, sigma).predict


@dataclass(frozen=True)
class Straight:
    """y = a + b x. `sigma` is relative or absolute according to `noise`."""

    names: tuple[str, str]
    noise: str = RELATIVE

    def fit(self, x: Array, y: Array, sigma: Array, level: float = LEVEL) -> Fitted:
        unit = float(np.abs(x).max())
        # Scaled, because parameters counted in billions beside a column of ones leave the solver no digits.
        design = np.column_stack([np.ones_like(x), x / unit])
        scale = _scale(self.noise, y, sigma)
        best, covariance, residuals = linear(design, y, scale)
        for _ in range(REWEIGHTINGS if self.noise == RELATIVE else 0):
            scale = _scale(self.noise, _positive(design @ best, y), sigma)
            best, covariance, residuals = linear(design, y, scale)
        half = t_quantile(level, len(x) - 2) if len(x) > 2 else math.nan
        spread = half * np.sqrt(np.diag(covariance))
        parameters = tuple(
            Parameter(float(b / u), float((b - s) / u), float((b + s) / u))
            for b, s, u in zip(best, spread, (1.0, unit), strict=True)
        )
        return Fitted(parameters, lambda at: best[0] + best[1] * at / unit, residuals, _r2(y, design @ best, scale))

    def curve(self, x: Array, y: Array, sigma: Array) -> Callable[[Array], Array]:
        return self.fit(x, y, sigma).predict


@dataclass(frozen=True)
class OffsetPower:
    """y = k + v x^w with relative noise; w is sought between 0.02 and 4."""

    names: tuple[str, str, str]

    def fit(self, x: Array, y: Array, sigma: Array, level: float = LEVEL) -> Fitted:
        best = _shape(x, y, sigma)
        profile = _Profile(best.ratio, y, best.scale, level, best.exponent)
        w = Parameter(best.exponent, *profile.exponent_bounds())
        region = profile.region(w)
        k = Parameter(best.offset, *_offset_bounds(region, w, best.factor))
        v = Parameter(best.factor / best.unit**best.exponent, *_factor_bounds(region, w, best.unit))
        fitted = best.at(x)
        return Fitted((k, v, w), best.at, (y - fitted) / best.scale, _r2(y, fitted, best.scale))

    def curve(self, x: Array, y: Array, sigma: Array) -> Callable[[Array], Array]:
        return _shape(x, y, sigma).at


@dataclass(frozen=True)
class _Shape:
    """The best offset power: y = offset + factor (x / unit)^exponent, and the noise scale it was found with."""

    ratio: Array
    unit: float
    offset: float
    factor: float
    exponent: float
    scale: Array

    def at(self, x: Array) -> Array:
        return self.offset + self.factor * (x / self.unit) ** self.exponent


def _shape(x: Array, y: Array, sigma: Array) -> _Shape:
    unit = float(np.exp(np.log(x).mean()))
    ratio = x / unit
    scale = _scale(RELATIVE, y, sigma)
    for _ in range(REWEIGHTINGS):
        exponent = _best_exponent(ratio, y, scale)
        offset, factor = _coefficients(ratio, y, scale, exponent)
        scale = _scale(RELATIVE, _positive(offset + factor * ratio**exponent, y), sigma)
    exponent = _best_exponent(ratio, y, scale)
    return _Shape(ratio, unit, *_coefficients(ratio, y, scale, exponent), exponent, scale)


@dataclass(frozen=True)
class _Profile:
    """Residual sum of squares as a function of one parameter, the others at their best for it."""

    ratio: Array
    y: Array
    scale: Array
    level: float
    best: float

    @property
    def limit(self) -> float:
        """The sum of squares at the edge of the interval: S_min (1 + F(1, n - 3) / (n - 3))."""
        degrees = self.y.size - 3
        least = max(self.by_exponent(self.best), NEGLIGIBLE * float(((self.y / self.scale) ** 2).sum()))
        return least * (1 + float(stats.f.ppf(self.level, 1, degrees)) / degrees) if degrees > 0 else math.inf

    def by_exponent(self, exponent: float) -> float:
        return float(_sums(self.ratio, self.y, self.scale, np.array([exponent]))[0])

    def exponent_bounds(self) -> tuple[float | None, float | None]:
        limit, below = self.limit, int(np.searchsorted(EXPONENTS, self.best))
        return (
            _cross(self.by_exponent, limit, self.best, EXPONENTS[:below][::-1]),
            _cross(self.by_exponent, limit, self.best, EXPONENTS[below:]),
        )

    def region(self, w: Parameter) -> _Region:
        """The part of parameter space whose sum of squares keeps the limit, slice by slice of the exponent."""
        low, high = w.low or float(EXPONENTS[0]), w.high or float(EXPONENTS[-1])
        exponents = np.append(np.linspace(low, high, SLICES), self.best)
        weight = 1 / self.scale**2
        powers = self.ratio[None, :] ** exponents[:, None]
        total, cross, square = weight.sum(), powers @ weight, powers**2 @ weight
        mean_y, mean_p = (weight * self.y).sum() / total, cross / total
        spread = ((powers - mean_p[:, None]) ** 2) @ weight
        factor = ((powers - mean_p[:, None]) * weight) @ (self.y - mean_y) / spread
        room = np.sqrt(np.maximum(self.limit - _sums(self.ratio, self.y, self.scale, exponents), 0.0))
        # With the exponent held, the sum of squares is a parabola in either coefficient, the other at its best.
        offset_reach = room / np.sqrt(np.maximum(total - cross**2 / square, TINY))
        return _Region(exponents, mean_y - factor * mean_p, offset_reach, factor, room / np.sqrt(spread))


@dataclass(frozen=True)
class _Region:
    """For each exponent, shape [slices]: the best offset and factor of (x / unit)^exponent, and how far each may be off."""

    exponents: Array
    offset: Array
    offset_reach: Array
    factor: Array
    factor_reach: Array


def linear(design: Array, y: Array, sigma: Array) -> tuple[Array, Array, Array]:
    """Weighted least squares: coefficients, covariance scaled by the residuals' own scatter, standardised residuals."""
    weighted, target = design / sigma[:, None], y / sigma
    best, _, _, _ = np.linalg.lstsq(weighted, target, rcond=None)
    residuals = target - weighted @ best
    degrees = y.size - design.shape[1]
    variance = float(residuals @ residuals) / degrees if degrees > 0 else math.nan
    covariance: Array = np.linalg.pinv(weighted.T @ weighted) * variance
    coefficients: Array = np.asarray(best, dtype=np.float64)
    return coefficients, covariance, residuals


def _scale(noise: str, level: Array, sigma: Array) -> Array:
    return sigma * np.abs(level) if noise == RELATIVE else sigma


def _positive(fitted: Array, y: Array) -> Array:
    """The fitted curve as a scale for errors, kept away from zero where it crosses it."""
    return np.maximum(np.abs(fitted), 0.1 * np.abs(y))


def _coefficients(ratio: Array, y: Array, scale: Array, exponent: float) -> tuple[float, float]:
    design = np.column_stack([np.ones_like(ratio), ratio**exponent])
    best, _, _ = linear(design, y, scale)
    return float(best[0]), float(best[1])


def _sums(ratio: Array, y: Array, scale: Array, exponents: Array) -> Array:
    """Residual sums of squares for each exponent with offset and factor at their best, shape [exponents]."""
    weight = 1 / scale**2
    powers = ratio[None, :] ** exponents[:, None]
    total = weight.sum()
    mean_y, mean_p = (weight * y).sum() / total, (powers @ weight) / total
    centred_p, centred_y = powers - mean_p[:, None], y - mean_y
    cross, square = (centred_p * weight) @ centred_y, (centred_p**2 * weight).sum(axis=1)
    factor = cross / square
    sums: Array = ((centred_y - factor[:, None] * centred_p) ** 2 * weight).sum(axis=1)
    return sums


def _best_exponent(ratio: Array, y: Array, scale: Array) -> float:
    sums = _sums(ratio, y, scale, EXPONENTS)
    index = int(sums.argmin())
    low, high = EXPONENTS[max(index - 1, 0)], EXPONENTS[min(index + 1, EXPONENTS.size - 1)]
    found = optimize.minimize_scalar(
        lambda w: float(_sums(ratio, y, scale, np.array([w]))[0]), bounds=(low, high), method="bounded",
        options={"xatol": 1e-7},
    )  # fmt: skip
    return float(found.x)


def _cross(of: Callable[[float], float], limit: float, best: float, outward: Array) -> float | None:
    """Where `of` first rises above `limit` on the way `outward` from `best`; None where it never does."""
    last = best
    if of(best) > limit:
        return best
    for point in outward:
        if of(float(point)) > limit:
            return float(optimize.brentq(lambda p: of(float(p)) - limit, last, float(point), xtol=1e-15, rtol=1e-6))
        last = float(point)
    return None


def _offset_bounds(region: _Region, w: Parameter, factor: float) -> tuple[float | None, float | None]:
    """Least and largest offset in the region. Where the exponent may go to zero the offset runs away, against the factor."""
    low, high = float((region.offset - region.offset_reach).min()), float((region.offset + region.offset_reach).max())
    if w.low is not None:
        return low, high
    return (None, high) if factor > 0 else (low, None)


def _factor_bounds(region: _Region, w: Parameter, unit: float) -> tuple[float | None, float | None]:
    """Least and largest v of y = k + v x^w in the region; open where the exponent is."""
    if w.low is None or w.high is None:
        return None, None
    per_x = unit**region.exponents
    low, high = (region.factor - region.factor_reach) / per_x, (region.factor + region.factor_reach) / per_x
    return float(low.min()), float(high.max())


def _r2(y: Array, fitted: Array, sigma: Array) -> float:
    """Weighted share of the variance explained; 1 where there is none to explain and none is missed."""
    weight = 1 / sigma**2
    mean = float((weight * y).sum() / weight.sum())
    total, missed = float((weight * (y - mean) ** 2).sum()), float((weight * (y - fitted) ** 2).sum())
    if total <= NEGLIGIBLE * float((weight * y**2).sum()):
        return 1.0 if missed <= NEGLIGIBLE * float((weight * y**2).sum()) else 0.0
    return 1 - missed / total
