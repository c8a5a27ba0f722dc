"""The paper's efficiencies from measured cells: batch scaling, quantization, memory, cost, and the best batch size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from effillm_server.analysis.cells import Cell, slices
from effillm_server.analysis.facts import UNQUANTIZED, Facts
from effillm_server.analysis.ratios import Ratio, cell_ratio
from effillm_server.analysis.reasons import reason, shares
from effillm_server.contract.quantization import bits_of

KEEPS_SHARE = 0.8
SECONDS_PER_HOUR = 3600
MILLION = 1e6
QUANTIZATION_AXES = ("quantization", "dtype")
ON_PROCESSORS = ("fp32", "bf16", "fp16")


def batch_scaling(of: Sequence[Cell], facts: Facts) -> list[dict[str, Any]]:
    """eta_b = T(b) / (b · T(1)) for every cell with a batch-1 partner, with its interval."""
    found = []
    for members in slices(of, ("batch_size",)).values():
        one = next((cell for cell in members if cell.axes["batch_size"] == 1), None)
        for cell in members if one is not None else ():
            batch = cell.axes["batch_size"]
            eta = cell_ratio(cell, one, "throughput_tok_s", facts, 1 / batch) if one is not None and batch > 1 else None
            if eta is not None and one is not None:
                found.append(
                    {**cell.axes, "eta": eta.value, "low": eta.low, "high": eta.high, "jobs": cell.jobs + one.jobs}
                )
    return found


def best_batches(of: Sequence[Cell], facts: Facts) -> list[dict[str, Any]]:
    """b_opt both ways, per slice with at least two batch sizes.

    `argmax`: the b with the largest T(b) / b, the paper's definition, which is 1 wherever eta_b <= 1. `largest_keeping_80`:
    the largest b with T(b) / b >= 0.8 · T(1). Each comes with the batch sizes that the intervals cannot rule out.
    """
    found = []
    for members in slices(of, ("batch_size",)).values():
        by_batch = {c.axes["batch_size"]: c for c in members if c.estimate("throughput_tok_s") is not None}
        if len(by_batch) >= 2:
            found.append(_best_batch(by_batch, facts))
    return found


def _best_batch(by_batch: dict[int, Cell], facts: Facts) -> dict[str, Any]:
    batches = sorted(by_batch)
    share = {batch: _estimate(by_batch[batch]) / batch for batch in batches}
    best = max(batches, key=lambda batch: share[batch])
    peak = max(batches, key=lambda batch: share[batch] * batch)
    contenders = [batch for batch in batches if not _is_below(_per_instance(by_batch, batch, best, facts), 1.0)]
    entry: dict[str, Any] = {
        **{axis: value for axis, value in by_batch[best].axes.items() if axis != "batch_size"},
        "batch_sizes": batches,
        "argmax": best,
        "argmax_not_ruled_out": contenders,
        "throughput_peak": peak,
        "largest_keeping_80": None,
        "largest_keeping_80_range": None,
        "jobs": [job for batch in batches for job in by_batch[batch].jobs],
    }
    if 1 in by_batch:
        ratios = {batch: _per_instance(by_batch, batch, 1, facts) for batch in batches if batch > 1}
        kept = [b for b, r in ratios.items() if r is not None and r.value >= KEEPS_SHARE]
        surely = [b for b, r in ratios.items() if r is not None and r.low >= KEEPS_SHARE]
        perhaps = [b for b, r in ratios.items() if r is not None and r.high >= KEEPS_SHARE]
        entry["largest_keeping_80"] = max(kept, default=1)
        entry["largest_keeping_80_range"] = [max(surely, default=1), max(perhaps, default=1)]
    return entry


def quantization(of: Sequence[Cell], facts: Facts) -> list[dict[str, Any]]:
    """Every precision against every unquantized one of its slice: efficiency (speed kept), memory reduction, and why.

    The reduction in theory is 1 - bits / bits; beside it the measured one of the peak during inference, and of the weights.
    `is_partner`: whether the unquantized one is the cell's own partner, see `partners`.
    """
    own = {(id(cell), id(base)) for cell, base in partners(of)}
    return [against(cell, base, facts) | {"is_partner": (id(cell), id(base)) in own} for cell, base in pairs(of)]


def partners(of: Sequence[Cell]) -> list[tuple[Cell, Cell]]:
    """Every cell that has one with its unquantized partner: the same in fp16 on a GPU, in fp32 on a processor.

    Where the device's own reference was not measured, the next unquantized precision that is wider stands in for it; the
    reference itself has no partner.
    """
    best: dict[int, tuple[Cell, Cell]] = {}
    for cell, base in pairs(of):
        order = _references(cell)
        if cell.axes["quantization"] == order[0]:
            continue
        place = {name: rank for rank, name in enumerate(order)}
        known = best.get(id(cell))
        if known is None or place[base.axes["quantization"]] < place[known[1].axes["quantization"]]:
            best[id(cell)] = (cell, base)
    return list(best.values())


def _references(cell: Cell) -> tuple[str, ...]:
    """Unquantized precisions, the device's own reference first."""
    has_vram = any(row.get("vram_peak_bytes") is not None for row in cell.rows)
    return UNQUANTIZED if has_vram else ON_PROCESSORS


def pairs(of: Sequence[Cell]) -> list[tuple[Cell, Cell]]:
    """Every precision with every unquantized one of its slice; of two unquantized ones the narrower with the wider."""
    found = []
    for members in slices(of, QUANTIZATION_AXES).values():
        by_precision = {cell.axes["quantization"]: cell for cell in members}
        for baseline in (name for name in UNQUANTIZED if name in by_precision):
            for name, cell in by_precision.items():
                if name != baseline and not (name in UNQUANTIZED and _is_as_wide(name, baseline)):
                    found.append((cell, by_precision[baseline]))
    return found


def against(cell: Cell, base: Cell, facts: Facts) -> dict[str, Any]:
    """One precision against one unquantized one. `shares` are those of the device reached and of time in dequantization."""
    speed = cell_ratio(cell, base, "throughput_tok_s", facts)
    ttft = cell_ratio(cell, base, "ttft_s", facts)
    return {
        **cell.axes,
        "baseline": base.axes["quantization"],
        "efficiency": speed.as_dict() if speed else None,
        "ttft_ratio": ttft.as_dict() if ttft else None,
        "memory_reduction_theory": _in_theory(cell, base),
        "memory_reduction_measured": _reduction(cell, base, "memory_bytes"),
        "weights_reduction_measured": _reduction(cell, base, "weight_bytes"),
        "quality_loss": _quality_loss(cell),
        "shares": {"own": shares(cell), "baseline": shares(base)},
        "reason": reason(cell, base, facts),
        "jobs": cell.jobs + base.jobs,
    }


def theoretical_bits(cell: Cell) -> float | None:
    """Bits of a quantized weight, scales left out: what the loaded model said, else what the label says."""
    said = cell.estimate("theoretical_bits")
    return said.value if said is not None else bits_of(cell.axes["quantization"])


def cost(of: Sequence[Cell], facts: Facts) -> list[dict[str, Any]]:
    """Tokens per second per dollar of purchase, and dollars per million tokens from the hourly price, per cell."""
    found = []
    for cell in of:
        price = facts.prices.get(cell.axes["hardware"])
        throughput = cell.estimate("throughput_tok_s")
        if price is None or throughput is None or throughput.value <= 0:
            continue
        hourly, purchase = price.hourly_usd, price.purchase_usd
        per_hour = throughput.value * SECONDS_PER_HOUR / MILLION
        found.append(
            {
                **cell.axes,
                "tok_s_per_usd": throughput.value / purchase if purchase else None,
                "tok_s_per_usd_low": throughput.low / purchase if purchase and throughput.low is not None else None,
                "tok_s_per_usd_high": throughput.high / purchase if purchase and throughput.high is not None else None,
                "usd_per_million_tokens": hourly / per_hour if hourly else None,
                "purchase_usd": purchase,
                "hourly_usd": hourly,
                "price_source": price.source,
                "price_date": price.date.isoformat(),
                "jobs": cell.jobs,
            }
        )
    return found


def _estimate(cell: Cell) -> float:
    estimate = cell.estimate("throughput_tok_s")
    return estimate.value if estimate is not None else 0.0


def _per_instance(by_batch: dict[int, Cell], batch: int, to: int, facts: Facts) -> Ratio | None:
    """(T(b) / b) / (T(to) / to)."""
    return None if batch == to else cell_ratio(by_batch[batch], by_batch[to], "throughput_tok_s", facts, to / batch)


def _is_below(found: Ratio | None, bound: float) -> bool:
    return found is not None and found.high < bound


def _is_as_wide(name: str, baseline: str) -> bool:
    return (bits_of(name) or 0) >= (bits_of(baseline) or 0)


def _in_theory(cell: Cell, base: Cell) -> float | None:
    """1 - bits / bits, scales left out; None where nothing tells the bits."""
    bits, before = theoretical_bits(cell), theoretical_bits(base)
    return None if bits is None or not before else 1 - bits / before


def _quality_loss(cell: Cell) -> dict[str, float | None] | None:
    """Relative rise of perplexity over the unquantized model, with its interval."""
    loss = cell.estimate("quality_loss")
    return None if loss is None else {"value": loss.value, "low": loss.low, "high": loss.high}


def _reduction(cell: Cell, base: Cell, metric: str) -> float | None:
    now, before = cell.estimate(metric), base.estimate(metric)
    return 1 - now.value / before.value if now is not None and before is not None and before.value > 0 else None
