"""Each row beside its unquantized partner: the same cell in fp16 on a GPU, in fp32 on a processor."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from effillm_server.analysis.cells import Cell, cells, select
from effillm_server.analysis.efficiency import against, partners
from effillm_server.analysis.facts import Facts
from effillm_server.analysis.reasons import SHARES
from effillm_server.analysis.rows import AXES

Row = Mapping[str, Any]
# All that `beside` reads of a row: who holds many holds these only.
NEEDED = (
    *AXES, "job", "simulated", "verdict", "iterations", "ttft_iterations", "excluded_outliers", "ram_peak_bytes", "vram_peak_bytes",
    "weight_bytes", "theoretical_bits", *SHARES,
    *(f"{metric}_{part}" for metric in ("throughput_tok_s", "ttft_s", "tpot_s") for part in ("mean", "std", "ci95_low", "ci95_high")),
)  # fmt: skip


def beside(rows: Iterable[Row], facts: Facts | None = None) -> dict[int, dict[str, Any]]:
    """The columns `rows.PARTNER_TYPES` by job, for every usable row that has a partner among `rows`.

    The numbers are those of `efficiency.quantization`: of all processes that measured a cell, so its repeats share them.
    """
    known = facts or Facts()
    found: dict[int, dict[str, Any]] = {}
    for cell, base in partners(cells(select(rows).rows)):
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
