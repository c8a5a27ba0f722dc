"""From rows to cells: which rows an analysis may use, and one estimate per cell with its uncertainty."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from effillm_server.analysis import statistics
from effillm_server.analysis.facts import Facts
from effillm_server.analysis.rows import AXES, memory_peak_bytes
from effillm_server.contract.units import GB

Row = Mapping[str, Any]
Key = tuple[Any, ...]
LOWER_IS_BETTER = frozenset(
    {"ttft_s", "ttft_in_run_s", "tpot_s", "e2e_s", "memory_bytes", "ram_peak_bytes", "vram_peak_bytes", "load_s", "energy_per_token_j",
     "perplexity", "mean_kl", "quality_loss"}
)  # fmt: skip
# Found once for the weights of a load group: processes differ in nothing, and the interval is over the text.
OF_THE_WEIGHTS = frozenset({"perplexity", "token_agreement", "mean_kl", "quality_loss"})


@dataclass(frozen=True)
class Selection:
    """The rows an analysis stands on, and how many were left out and why."""

    rows: tuple[Row, ...]
    simulated: bool
    left_out: dict[str, int] = field(default_factory=dict)

    @property
    def note(self) -> str:
        """What was left out, as a sentence for captions; empty when nothing was."""
        parts = [f"{count} {why}" for why, count in self.left_out.items() if count]
        return f"left out: {', '.join(parts)}" if parts else ""


def select(rows: Iterable[Row], *, include_invalid: bool = False, simulated: bool | None = None) -> Selection:
    """Measured rows fit for analysis. Invalid ones only if asked for; simulated and measured are never mixed.

    `simulated` None: measured rows where there are any, else the simulated ones.
    """
    everything = list(rows)
    measured = [row for row in everything if row.get("throughput_tok_s_mean") is not None]
    wanted = simulated if simulated is not None else bool(measured) and all(row["simulated"] for row in measured)
    kept, left_out = [], {"invalid": 0, "simulated": 0, "measured (simulated ones asked for)": 0}
    for row in measured:
        if bool(row["simulated"]) is not wanted:
            left_out["simulated" if row["simulated"] else "measured (simulated ones asked for)"] += 1
        elif row["verdict"] == "invalid" and not include_invalid:
            left_out["invalid"] += 1
        else:
            kept.append(row)
    return Selection(tuple(kept), wanted, left_out)


@dataclass(frozen=True)
class Estimate:
    """One metric of one cell: mean over its processes, 95 % interval, relative standard error of what was seen."""

    value: float
    low: float | None
    high: float | None
    relative_se: float
    processes: int
    iterations: int

    def log_variance(self, facts: Facts) -> float:
        """Variance of ln(value): what was seen, and for a single process the machine's noise between processes."""
        between = facts.process_sd**2 if self.processes == 1 else 0.0
        return self.relative_se**2 + between


@dataclass(frozen=True)
class Cell:
    """All processes that measured one point of the matrix."""

    axes: dict[str, Any]
    rows: tuple[Row, ...]

    @property
    def jobs(self) -> list[int]:
        return [row["job"] for row in self.rows]

    @property
    def model_label(self) -> str:
        return label(self.axes["model"])

    def estimate(self, metric: str) -> Estimate | None:
        """Estimate of `metric` (a column without suffix); None where no process has it."""
        if metric == "quality_kept":
            return _kept(self.estimate("quality_loss"))
        values = [(value_of(row, metric), row) for row in self.rows]
        present = [(value, row) for value, row in values if value is not None and math.isfinite(value)]
        if not present:
            return None
        if len(present) == 1 or metric in OF_THE_WEIGHTS:
            return _from_one_process(metric, *present[0])
        means = np.array([value for value, _ in present])
        interval = statistics.mean_interval(means)
        centre = float(means.mean())
        return Estimate(
            value=centre,
            low=interval.low if interval else None,
            high=interval.high if interval else None,
            relative_se=float(means.std(ddof=1)) / math.sqrt(means.size) / abs(centre) if centre else 0.0,
            processes=int(means.size),
            iterations=sum(_iterations(metric, row) for _, row in present),
        )


def value_of(row: Row, metric: str) -> float | None:
    """A row's headline value: the mean where the metric has iterations, else the column itself."""
    if metric == "memory_bytes":
        return memory_peak_bytes(row)
    if metric == "memory_gb":
        peak = memory_peak_bytes(row)
        return None if peak is None else peak / GB
    found: float | None = row.get(f"{metric}_mean", row.get(metric))
    return found


def _kept(loss: Estimate | None) -> Estimate | None:
    """Unquantized perplexity over this one: 1 / (1 + loss), so that what is better is more, as on the other axes."""
    if loss is None or loss.value <= -1:
        return None
    low, high = (None if bound is None or bound <= -1 else 1 / (1 + bound) for bound in (loss.high, loss.low))
    return Estimate(1 / (1 + loss.value), low, high, 0.0, loss.processes, loss.iterations)


def _from_one_process(metric: str, value: float, row: Row) -> Estimate:
    low, high, std = (row.get(f"{metric}_{suffix}") for suffix in ("ci95_low", "ci95_high", "std"))
    count = _iterations(metric, row)
    relative = std / math.sqrt(count) / abs(value) if std is not None and count and value else 0.0
    return Estimate(float(value), low, high, float(relative), 1, count)


def _iterations(metric: str, row: Row) -> int:
    if metric == "ttft_s":
        return int(row.get("ttft_iterations") or 0)
    return int(row.get("iterations") or 0) - int(row.get("excluded_outliers") or 0)


def cells(rows: Iterable[Row]) -> list[Cell]:
    """Rows gathered by every axis but the repeat, in the order they come."""
    gathered: dict[Key, list[Row]] = defaultdict(list)
    for row in rows:
        gathered[tuple(row[axis] for axis in AXES)].append(row)
    return [Cell(dict(zip(AXES, key, strict=True)), tuple(members)) for key, members in gathered.items()]


def slices(of: Sequence[Cell], free: Sequence[str]) -> dict[Key, list[Cell]]:
    """Cells grouped by every axis not in `free`: within a slice only the free axes vary."""
    fixed = [axis for axis in AXES if axis not in free]
    gathered: dict[Key, list[Cell]] = defaultdict(list)
    for cell in of:
        gathered[tuple(cell.axes[axis] for axis in fixed)].append(cell)
    return dict(gathered)


def fixed_axes(of: Sequence[Cell]) -> dict[str, Any]:
    """Axes on which all of `of` agree, with their value."""
    return {axis: of[0].axes[axis] for axis in AXES if of and len({cell.axes[axis] for cell in of}) == 1}


def label(model: str) -> str:
    """Short name of a model for legends: the part behind the last slash."""
    return model.rsplit("/", 1)[-1]
