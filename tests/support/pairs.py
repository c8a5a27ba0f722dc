"""The rule by which benchmarks/fidelity.py adds pairs, on simulated pairs whose true ratio is known."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from benchmarks.fidelity import FEWEST_PAIRS, INSIDE, of_means, settles
from effillm_worker.paired import Ratio

Array = NDArray[np.float64]
MOST_PAIRS = 500  # as in docs/measured.md
# Logarithms of a pair's ratio: as wide as those in docs/measured.md, and with the tail that a neighbour on the same host makes.
NOISE: dict[str, Callable[[np.random.Generator, int], Array]] = {
    "normal, 3 %": lambda rng, size: 0.03 * rng.standard_normal(size),
    "normal, 5 %": lambda rng, size: 0.05 * rng.standard_normal(size),
    "heavy tail (t3), 5 %": lambda rng, size: 0.05 / math.sqrt(3) * rng.standard_t(3, size),
}


@dataclass
class Decided:
    """What became of simulated comparisons of one true ratio."""

    truth: float
    pairs: list[int] = field(default_factory=list)
    ratios: list[Ratio] = field(default_factory=list)
    undecided: int = 0

    def shares(self) -> dict[str, float | None]:
        """Decided of all; of those the intervals that hold the truth, and those that lie inside the bounds; pairs on average."""
        count = len(self.ratios)
        held = sum(ratio.low <= self.truth <= ratio.high for ratio in self.ratios)
        inside = sum(INSIDE[0] <= ratio.low and ratio.high <= INSIDE[1] for ratio in self.ratios)
        return {
            "decided": count / (count + self.undecided),
            "hold the truth": held / count if count else None,
            "inside": inside / count if count else None,
            "pairs": float(np.mean(self.pairs)),
        }


def simulate(noise: str, truth: float, runs: int) -> Decided:
    """`runs` comparisons whose pairs scatter by `noise` around the ratio `truth`."""
    rng = np.random.default_rng([ord(letter) for letter in f"{noise} {truth}"])
    found = Decided(truth)
    for _ in range(runs):
        decide(found, math.log(truth) + NOISE[noise](rng, MOST_PAIRS))
    return found


def decide(found: Decided, logarithms: Array) -> None:
    """Look after every pair, as the benchmark does."""
    for ratio, count in growing(logarithms):
        if settles(ratio, INSIDE):
            found.ratios.append(ratio)
            found.pairs.append(count)
            return
    found.undecided += 1
    found.pairs.append(len(logarithms))


def growing(logarithms: Iterable[float]) -> Iterator[tuple[Ratio, int]]:
    """`pseudo_median` of the first 20, 21, 22 ... logarithms: the sorted means are kept and added to, not made anew."""
    values: list[float] = []
    means = np.empty(0)
    for value in logarithms:
        values.append(value)
        new = np.sort((np.asarray(values) + value) / 2)
        means = np.insert(means, np.searchsorted(means, new), new)
        if len(values) >= FEWEST_PAIRS:
            yield of_means(means, len(values)), len(values)
