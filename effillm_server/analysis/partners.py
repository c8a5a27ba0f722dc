"""Each row beside its unquantized partner: the same cell in fp16 on a GPU, in fp32 on a processor."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from effillm_server.analysis.cells import Cell, cells, select
from effillm_server.analysis.efficiency import against, pairs
from effillm_server.analysis.facts import UNQUANTIZED, Facts
from effillm_server.analysis.reasons import SHARES
from effillm_server.analysis.rows import AXES

Row = Mapping[str, Any]
ON_PROCESSORS = ("fp32", "bf16", "fp16")
# All that `beside` reads of a row: who holds many holds these only.
NEEDED = (
    *AXES, "job", "simulated", "verdict", "iterations", "ttft_iterations", "excluded_outliers", "ram_peak_bytes", "vram_peak_bytes",
    "weight_bytes", "theoretical_bits", *SHARES,
    *(f"{metric}_{part}" for metric in ("throughput_tok_s", "ttft_s", "tpot_s") for part in ("mean", "std", "ci95_low", "ci95_high")),
)  # fmt: skip


def beside(rows: Iterable[Row], facts: Facts | None = None) -> dict[int, dict[str, Any]]:
    """The columns `rows.PARTNER_TYPES` by job, for every usable row that has a partner among `rows`.

    The numbers are those of `efficiency.quantization`: of all processes that measured a cell, so its repeats share them. Where
    the device's own reference was not measured, the next unquantized precision that is wider stands in for it.
    """
    known = facts or Facts()
    best: dict[tuple[Any, ...], tuple[Cell, Cell]] = {}
    for cell, base in pairs(cells(select(rows).rows)):
        order = _order(cell)
        if cell.axes["quantization"] == order[0]:
            continue
        place = tuple(cell.axes.values())
        if place not in best or _rank(order, base) < _rank(order, best[place][1]):
            best[place] = (cell, base)
    found: dict[int, dict[str, Any]] = {}
    for cell, base in best.values():
        found |= dict.fromkeys(cell.jobs, _columns(cell, base, known))
    return found


def _columns(cell: Cell, base: Cell, facts: Facts) -> dict[str, Any]:
    found = against(cell, base, facts)
    speed = found["efficiency"] or {}
    return {
        "unquantized_partner": found["baseline"],
        "quantization_efficiency": speed.get("value"),
        "quantization_efficiency_ci95_low": speed.get("low"),
        "quantization_efficiency_ci95_high": speed.get("high"),
        "memory_reduction_measured": found["memory_reduction_measured"],
        "quantization_reason": found["reason"],
    }


def _order(cell: Cell) -> tuple[str, ...]:
    """Unquantized precisions, the device's own reference first."""
    has_vram = any(row.get("vram_peak_bytes") is not None for row in cell.rows)
    return UNQUANTIZED if has_vram else ON_PROCESSORS


def _rank(order: tuple[str, ...], base: Cell) -> int:
    return order.index(base.axes["quantization"])
