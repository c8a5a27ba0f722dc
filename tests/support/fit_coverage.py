"""Simulated sweeps that follow laws with known parameters, and how often the fits' 95 % intervals hold these."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from effillm_server.analysis.cells import cells
from effillm_server.analysis.facts import Facts
from effillm_server.analysis.forms import ABSOLUTE, RELATIVE, Form, OffsetPower, Power, Straight
from effillm_server.analysis.scaling import batch_exponent_by_sequence
from tests.support.sweeps import Grid, Laws, Noise, invent

Array = NDArray[np.float64]
Bounds = tuple[float | None, float | None]
LENGTHS = np.array([128.0, 256, 512, 1024, 2048, 4096])
SIZES = np.array([70e6, 125e6, 160e6, 331e6, 410e6, 1e9, 1.4e9]) / 1e9
RELATIVE_SD = 0.04
MEMORY_SD_GB = 0.05
SEED = 11


@dataclass(frozen=True)
class Simulated:
    """A law, its true parameters by name, and one simulated sweep's interval of each in that order."""

    truth: dict[str, float]
    points: int
    intervals: Callable[[np.random.Generator], list[Bounds]]


def fit_coverage(name: str, runs: int) -> dict[str, float]:
    """Share of `runs` simulated sweeps whose interval holds each true parameter. An open side holds everything on it."""
    rng, simulated = np.random.default_rng(SEED), FITS[name]
    held = dict.fromkeys(simulated.truth, 0)
    for _ in range(runs):
        for (parameter, value), bounds in zip(simulated.truth.items(), simulated.intervals(rng), strict=True):
            low, high = bounds
            held[parameter] += (low is None or low <= value) and (high is None or value <= high)
    return {parameter: count / runs for parameter, count in held.items()}


def _of_form(form: Form, truth: tuple[float, ...], curve: Callable[[Array], Array], x: Array, noise: str) -> Simulated:
    """Points on `curve` with noise as large as what fits the form in earnest: relative for times, absolute for memory."""

    def intervals(rng: np.random.Generator) -> list[Bounds]:
        luck = rng.standard_normal(x.size)
        y = curve(x) * np.exp(RELATIVE_SD * luck) if noise == RELATIVE else curve(x) + MEMORY_SD_GB * luck
        sigma = np.full(x.size, RELATIVE_SD if noise == RELATIVE else 1.0)
        return [(parameter.low, parameter.high) for parameter in form.fit(x, y, sigma).parameters]

    return Simulated(dict(zip(form.names, truth, strict=True)), x.size, intervals)


def _joint(batches: tuple[int, ...], lengths: tuple[int, ...]) -> Simulated:
    """T(b, s) = alpha(s) b^beta(s) on a grid, from rows to intervals as an analysis goes."""
    laws = Laws(beta=0.8, beta_slope=-0.05)
    exact = invent(Grid(batch_size=batches, sequence_length=lengths), laws, Noise(within=0.0))
    names = ("beta_128", "slope_per_doubling")

    def intervals(rng: np.random.Generator) -> list[Bounds]:
        luck = np.exp(RELATIVE_SD * rng.standard_normal(len(exact)))
        rows = [
            row | {"throughput_tok_s_mean": row["throughput_tok_s_mean"] * factor}
            for row, factor in zip(exact, luck, strict=True)
        ]
        (fit,) = batch_exponent_by_sequence(cells(rows), Facts())
        return [(fit["parameters"][name]["low"], fit["parameters"][name]["high"]) for name in names]

    return Simulated(dict(zip(names, (laws.beta, laws.beta_slope), strict=True)), len(exact), intervals)


FITS: dict[str, Simulated] = {
    "power": _of_form(Power(("a", "p")), (900.0, -0.5), lambda x: 900 * x**-0.5, LENGTHS, RELATIVE),
    "straight, relative noise": _of_form(Straight(("a", "b")), (0.02, 0.3), lambda x: 0.02 + 0.3 * x, SIZES, RELATIVE),
    "straight, absolute noise": _of_form(
        Straight(("a", "b"), ABSOLUTE), (0.4, 4.03), lambda x: 0.4 + 4.03 * x, SIZES, ABSOLUTE
    ),
    "offset power 0.8": _of_form(
        OffsetPower(("k", "v", "w")), (0.02, 1e-4, 0.8), lambda x: 0.02 + 1e-4 * x**0.8, LENGTHS, RELATIVE
    ),
    "offset power 1.0": _of_form(
        OffsetPower(("k", "v", "w")), (0.02, 1e-4, 1.0), lambda x: 0.02 + 1e-4 * x, LENGTHS, RELATIVE
    ),
    "joint, 16 points": _joint((1, 2, 4, 8), (128, 256, 512, 1024)),
    "joint, 6 points": _joint((1, 2, 4), (128, 512)),
}
