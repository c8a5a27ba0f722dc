"""Latency cliffs: steps between neighbouring cells of the b × s grid that are larger than growth and noise explain."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import special

from effillm_server.analysis.cells import Cell, slices
from effillm_server.analysis.facts import Facts

SMALLEST_EXCESS = 1.25
MIN_STEPS = 2
CONFIDENCE = 0.99


def cliffs(of: Sequence[Cell], facts: Facts, metric: str = "ttft_s") -> list[dict[str, Any]]:
    """Steps along batch size or sequence length whose growth exceeds proportional growth, or the line's own usual growth.

    Expected is x^p with p the larger of 1 and the median local exponent of the other steps of the line; a cliff is at least
    1.25 times that and beyond the 99 % bound of the noise (many steps are looked at, so 95 % would raise false alarms).
    """
    found = []
    for axis in ("batch_size", "sequence_length"):
        for members in slices(of, (axis,)).values():
            line = sorted(
                (cell for cell in members if cell.axes[axis] and cell.estimate(metric)), key=lambda c: int(c.axes[axis])
            )
            if len(line) > MIN_STEPS:
                found += _along(line, axis, metric, facts)
    return found


def _along(line: list[Cell], axis: str, metric: str, facts: Facts) -> list[dict[str, Any]]:
    estimates = [estimate for cell in line if (estimate := cell.estimate(metric)) is not None]
    logs = [math.log(estimate.value) for estimate in estimates]
    widths = [math.log(cell.axes[axis]) for cell in line]
    steps = [
        (logs[k + 1] - logs[k], widths[k + 1] - widths[k]) for k in range(len(line) - 1)
    ]  # fmt: skip
    found = []
    for k, (rise, width) in enumerate(steps):
        usual = float(np.median([r / w for j, (r, w) in enumerate(steps) if j != k]))
        excess = rise - max(usual, 1.0) * width
        error = math.sqrt(estimates[k].log_variance(facts) + estimates[k + 1].log_variance(facts))
        if excess > math.log(SMALLEST_EXCESS) and excess > float(special.ndtri(CONFIDENCE)) * error:
            found.append(
                {
                    **{a: value for a, value in line[k].axes.items() if a != axis},
                    "axis": axis,
                    "metric": metric,
                    "from": line[k].axes[axis],
                    "to": line[k + 1].axes[axis],
                    "rise": math.exp(rise),
                    "expected_rise": math.exp(max(usual, 1.0) * width),
                    "excess": math.exp(excess),
                    "jobs": line[k].jobs + line[k + 1].jobs,
                }
            )
    return found
