"""Simulated pairs of sweeps with realistic noise, and how often a comparison is right about them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from effillm_server.analysis.compare import Options, compare
from effillm_server.analysis.facts import Facts
from tests.support.sweeps import Grid, Noise, invent

Array = NDArray[np.float64]
FLOOR = 0.06
BETWEEN = FLOOR / math.sqrt(2)
WITHIN = 0.01
ITERATIONS = 10
# What one process's mean scatters by: the luck of the process, and what averaging its iterations leaves.
PROCESS_SD = math.hypot(BETWEEN, WITHIN / math.sqrt(ITERATIONS))
BATCHES = (1, 2, 4, 8)
DIFFERENT = frozenset({"faster", "slower"})


class Cells:
    """Sweeps of four cells with so many processes each, of one truth."""

    def __init__(self, processes: int) -> None:
        self.exact = invent(Grid(batch_size=BATCHES, repeats=processes), noise=Noise(within=0.0))
        self.truth = np.array([row["throughput_tok_s_mean"] for row in self.exact])

    def drawn(self, rng: np.random.Generator, effect: float = 0.0) -> list[dict[str, Any]]:
        """One measured sweep; its first cell is faster by `effect`."""
        luck = np.exp(BETWEEN * rng.standard_normal(self.truth.size))
        iterations = np.exp(WITHIN * rng.standard_normal((self.truth.size, ITERATIONS)))
        series = (self.truth * luck)[:, None] * iterations
        means = series.mean(axis=1) * (1 + effect * np.array([row["batch_size"] == 1 for row in self.exact]))
        return self._rows(means, series.std(axis=1, ddof=1), first_job=int(rng.integers(1, 2**40)))

    def typical(self, first_job: int) -> list[dict[str, Any]]:
        """A sweep whose spread is exactly the true one."""
        repeats = np.array([row["repeat"] for row in self.exact], dtype=np.float64)
        centred = repeats - repeats.mean()
        place = centred / np.unique(centred).std(ddof=1) if repeats.max() > 1 else centred
        means = self.truth * np.exp(PROCESS_SD * place)
        return self._rows(means, WITHIN * means, first_job)

    def _rows(self, means: Array, deviations: Array, first_job: int) -> list[dict[str, Any]]:
        return [
            row | {"job": first_job + k, "throughput_tok_s_mean": float(mean), "throughput_tok_s_std": float(std)}
            for k, (row, mean, std) in enumerate(zip(self.exact, means, deviations, strict=True))
        ]


def false_alarms(processes: int, sweeps: int, floor_from: int | None = None) -> float:
    """Share of A/A comparisons of four cells that call any of them different.

    `floor_from`: the noise floor is not known but measured for each, as `effillm doctor` does, from so many processes.
    """
    rng, of = np.random.default_rng(processes), Cells(processes)
    alarms = 0
    for _ in range(sweeps):
        facts = Facts(noise_floor=FLOOR) if floor_from is None else _measured(rng, floor_from)
        found = compare(of.drawn(rng), of.drawn(rng), Options(facts=facts))
        alarms += any(cell["verdict"] in DIFFERENT for cell in found["cells"])
    return alarms / sweeps


def power(processes: int, sweeps: int) -> float:
    """Share of comparisons of four cells that find the one whose change is the minimum detectable of these four."""
    rng, of, options = np.random.default_rng(processes), Cells(processes), Options(facts=Facts(noise_floor=FLOOR))
    told = compare(of.typical(1), of.typical(10_001), options)["cells"]
    effect = next(cell["minimum_detectable_change"] for cell in told if cell["batch_size"] == 1)
    found = 0
    for _ in range(sweeps):
        result = compare(of.drawn(rng), of.drawn(rng, effect), options)
        found += next(cell["verdict"] for cell in result["cells"] if cell["batch_size"] == 1) == "faster"
    return found / sweeps


def _measured(rng: np.random.Generator, processes: int) -> Facts:
    logs = PROCESS_SD * rng.standard_normal(processes)
    return Facts(noise_floor=math.sqrt(2) * float(logs.std(ddof=1)), noise_floor_degrees=processes - 1)
