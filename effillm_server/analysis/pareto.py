"""Which points no other point beats in everything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from effillm_server.errors import BadInput

Goal = Literal["max", "min"]


def pareto(points: Sequence[Mapping[str, float]], goals: Mapping[str, Goal]) -> list[int]:
    """Indices of the points that no other dominates: nowhere worse and somewhere better. Equal points stay together."""
    if not goals:
        raise BadInput("a Pareto set needs at least one metric and its direction, for example throughput_tok_s: max")
    for goal in goals.values():
        if goal not in ("max", "min"):
            raise BadInput(f"direction {goal!r} of a Pareto metric is neither 'max' nor 'min'")
    if not points:
        return []
    signs = np.array([1.0 if goal == "max" else -1.0 for goal in goals.values()])
    matrix = np.array([[float(point[metric]) for metric in goals] for point in points]) * signs
    if not np.isfinite(matrix).all():
        raise BadInput("a Pareto set needs finite numbers: leave out points without a value first")
    kept = []
    for index, point in enumerate(matrix):
        dominates = (matrix >= point).all(axis=1) & (matrix > point).any(axis=1)
        if not dominates.any():
            kept.append(index)
    return kept
