"""Simulated cells with a known true mean and median, and how often the intervals hold them."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from effillm_server.analysis import statistics
from effillm_worker.measure.stopping import REPLACEMENTS_BEYOND, Limits, Stopping

Array = NDArray[np.float64]
RELATIVE_SD = 0.05


def _normal(rng: np.random.Generator, shape: tuple[int, int]) -> Array:
    return 1 + RELATIVE_SD * rng.standard_normal(shape)


def _skewed(rng: np.random.Generator, shape: tuple[int, int]) -> Array:
    """A floor with an exponential tail, as timings have: mean 1, the same relative sd, skewness 2."""
    return 1 - RELATIVE_SD + RELATIVE_SD * rng.exponential(size=shape)


def _autocorrelated(rng: np.random.Generator, shape: tuple[int, int]) -> Array:
    """First-order autoregression, correlation 0.5 between neighbours."""
    noise = rng.standard_normal(shape)
    for k in range(1, shape[1]):
        noise[:, k] = 0.5 * noise[:, k - 1] + np.sqrt(1 - 0.25) * noise[:, k]
    return 1 + RELATIVE_SD * noise


def _with_outliers(rng: np.random.Generator, shape: tuple[int, int]) -> Array:
    """Normal, but one iteration in twenty takes half as long again; the truth is that of the undisturbed ones."""
    return _normal(rng, shape) + 0.5 * (rng.random(shape) < 0.05)


# Series, the true mean, the true median of one iteration's time. The mean of speeds differs: see `true_speed`.
SERIES: dict[str, tuple[Callable[[np.random.Generator, tuple[int, int]], Array], float, float]] = {
    "normal": (_normal, 1.0, 1.0),
    "skewed": (_skewed, 1.0, 1 - RELATIVE_SD + RELATIVE_SD * float(np.log(2))),
    "autocorrelated": (_autocorrelated, 1.0, 1.0),
    "outliers": (_with_outliers, 1.0, 1.0),
}


def generator(name: str) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(name.encode()))


def fixed_coverage(name: str, n: int, runs: int, *, exclude: bool) -> dict[str, float]:
    """Share of `runs` cells of `n` iterations whose intervals hold the true mean and median.

    `exclude` leaves marked outliers out, as the headline statistics do.
    """
    draw, mean, median = SERIES[name]
    held = {"mean": 0, "median": 0}
    for values in draw(generator(name), (runs, n)):
        kept = values[~np.array(statistics.outliers(values))] if exclude else values
        of_mean, of_median = statistics.mean_interval(kept), statistics.median_interval(kept)
        held["mean"] += of_mean is not None and mean in of_mean
        held["median"] += of_median is not None and median in of_median
    return {key: count / runs for key, count in held.items()}


def stopped_coverage(
    name: str, runs: int, relative_half_width: float = 0.02, *, least: int = 10, most: int = 30
) -> dict[str, Any]:
    """The same for mean throughput under the stopping rule (`least` to `most` iterations), with where it stopped."""
    draw, _, _ = SERIES[name]
    truth = true_speed(name)
    held, counts, errors = 0, [], []
    for values in draw(generator(name), (runs, most + REPLACEMENTS_BEYOND)):
        rule = Stopping(Limits(least, most, relative_half_width))
        for value in values:
            if rule.add(float(value)) is not None:
                break
        speeds = [1 / value for value, marked in zip(rule.e2e_s, rule.marked, strict=True) if not marked]
        interval = statistics.mean_interval(speeds)
        held += interval is not None and truth in interval
        counts.append(len(rule.e2e_s))
        errors.append(float(np.mean(speeds)) / truth - 1)
    return {
        "mean": held / runs,
        "iterations": float(np.mean(counts)),
        "stopped_early": float(np.mean(np.array(counts) < most)),
        "bias": float(np.mean(errors)),
    }


def true_speed(name: str) -> float:
    """Expected 1 / time of one undisturbed iteration, by a large sample."""
    draw = _normal if name == "outliers" else SERIES[name][0]
    return float(np.mean(1 / draw(np.random.default_rng(1), (400_000, 1))))
