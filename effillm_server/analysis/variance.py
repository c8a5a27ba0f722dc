"""How much of a cell's spread lies between processes and how much between the iterations of one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from effillm_server.analysis.cells import Cell, value_of


def variance_components(of: Sequence[Cell], metric: str = "throughput_tok_s") -> list[dict[str, Any]]:
    """Relative standard deviations between and within processes, for every cell that was repeated.

    One-way random effects: between² = variance of the process means less what the iterations' spread alone gives them, not
    below 0. `share_between` is the intraclass correlation.
    """
    found = []
    for cell in of:
        rows = [row for row in cell.rows if row.get(f"{metric}_std") is not None and value_of(row, metric)]
        counts = [int(row["iterations"]) - int(row["excluded_outliers"] or 0) for row in rows]
        if len(rows) < 2 or min(counts) < 2:
            continue
        means = np.array([float(row[f"{metric}_mean"]) for row in rows])
        within = float(np.average([row[f"{metric}_std"] ** 2 for row in rows], weights=[count - 1 for count in counts]))
        from_iterations = within * float(np.mean([1 / count for count in counts]))
        between = max(float(means.var(ddof=1)) - from_iterations, 0.0)
        centre, total = float(means.mean()), between + within
        found.append(
            {
                **cell.axes,
                "metric": metric,
                "processes": len(rows),
                "between_relative_sd": math.sqrt(between) / centre,
                "within_relative_sd": math.sqrt(within) / centre,
                "share_between": between / total if total > 0 else None,
                "jobs": cell.jobs,
            }
        )
    return found
