"""The paper's rules for deploying: INT4 when memory is tight, GPTQ offline, the batch size for many users."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from effillm_server.analysis.cells import Cell, Estimate, slices
from effillm_server.analysis.claims import CONFIRMED, REFUTED, UNDECIDED, Claim, Evidence, Study
from effillm_server.analysis.efficiency import KEEPS_SHARE, QUANTIZATION_AXES
from effillm_server.analysis.ratios import Ratio, cell_ratio
from effillm_server.analysis.rows import AXES
from effillm_server.analysis.words import compared, interval, number, slice_text
from effillm_server.contract.quantization import bits_of, method_of

# Memory has no interval: a precision counts as smaller when its peak is lower by this share.
SMALLER = 0.05
# A cost that is paid once is worth it when a day of generating earns it back.
PAYS_BACK_WITHIN_S = 86_400.0
INT4_BITS = 4
MANY_USERS_BATCH = 4


def _int4_when_tight(study: Study) -> list[Evidence]:
    """INT4 is what one would choose below some limit of memory, and not without one. At batch size 1, as all claims on memory."""
    found = []
    for members in slices(study.cells, QUANTIZATION_AXES).values():
        usable = [c for c in members if c.axes["batch_size"] == 1 and _positive(c, "throughput_tok_s", "memory_bytes")]
        wider = [c for c in usable if (bits_of(c.axes["quantization"]) or 0) > INT4_BITS]
        for cell in usable:
            if method_of(cell.axes["quantization"]) == "int4" and wider:
                found.append(_beside_wider(study, cell, wider))
    return found


def _beside_wider(study: Study, cell: Cell, wider: Sequence[Cell]) -> Evidence:
    """One INT4 cell beside every wider precision of its slice.

    Confirmed: some wider one is surely faster, and each of those needs more memory. Refuted: none is as fast, so that INT4
    would be chosen with any memory; or a faster one needs no more, so that it never would be.
    """
    speeds = [(other, ratio) for other in wider if (ratio := cell_ratio(cell, other, "throughput_tok_s", study.facts))]
    faster = [other for other, ratio in speeds if ratio.high < 1]
    compact = [other for other, _ in speeds if _saving(cell, other) < SMALLER]
    # A compact one that might be as fast leaves open whether INT4 is what a tight limit asks for.
    rivals = [other for other, ratio in speeds if other in compact and ratio.low <= 1]
    fastest, speed = max(speeds, key=lambda pair: _speed(pair[0]))
    verdict, shown = UNDECIDED, fastest
    if all(ratio.low > 1 for _, ratio in speeds):
        verdict = REFUTED
    elif better := [other for other in faster if other in compact]:
        verdict, shown = REFUTED, max(better, key=_speed)
        speed = next(ratio for other, ratio in speeds if other is shown)
    elif faster and not rivals:
        verdict = CONFIRMED
    name, other_name = cell.axes["quantization"], shown.axes["quantization"]
    what = "the fastest wider precision" if shown is fastest else "a wider one"
    text = (
        f"{name} runs at {interval(speed.as_dict())} times {other_name}, {what}, with {compared(_saving(cell, shown))} "
        f"peak memory, for {_where(cell.axes)}"
    )
    return _evidence(cell, verdict, text, [cell, *wider])


def _gptq_earns_its_making(study: Study) -> list[Evidence]:
    """Generating with GPTQ instead of INT4 wins back the time its quantization took, within a day."""
    found = []
    for cell, other in _gptq_and_int4(study):
        speed = cell_ratio(cell, other, "throughput_tok_s", study.facts)
        cost = cell.estimate("quantize_s")
        if speed is not None:
            verdict, said = _pays_back(speed, cost)
            names = cell.axes["quantization"], other.axes["quantization"]
            text = f"{names[0]} runs at {interval(speed.as_dict())} times {names[1]}; {said}; for {_where(cell.axes)}"
            found.append(_evidence(cell, verdict, text, [cell, other]))
    return found


def _gptq_and_int4(study: Study) -> Iterator[tuple[Cell, Cell]]:
    """Every GPTQ cell of 4 bits beside every INT4 cell of its slice."""
    for members in slices(study.cells, QUANTIZATION_AXES).values():
        by_method: dict[str, list[Cell]] = {"gptq": [], "int4": []}
        for cell in members:
            name = cell.axes["quantization"]
            if method_of(name) in by_method and bits_of(name) == INT4_BITS:
                by_method[method_of(name)].append(cell)
        yield from ((cell, other) for cell in by_method["gptq"] for other in by_method["int4"])


def _pays_back(speed: Ratio, cost: Estimate | None) -> tuple[str, str]:
    """Verdict and sentence. In t seconds GPTQ makes what INT4 needs speed · t for: it has won cost at t = cost / (speed - 1)."""
    if speed.high <= 1:
        return REFUTED, "what is not faster earns nothing back"
    if cost is None:
        return UNDECIDED, "what its quantization took is not known: the checkpoint was published quantized"
    soon, late = cost.value / (speed.high - 1), math.inf if speed.low <= 1 else cost.value / (speed.low - 1)
    verdict = CONFIRMED if late <= PAYS_BACK_WITHIN_S else REFUTED if soon > PAYS_BACK_WITHIN_S else UNDECIDED
    latest = "perhaps never" if math.isinf(late) else f"at the latest after {number(late)} s"
    return (
        verdict,
        f"its {number(cost.value)} s of quantization are earned back after {number(soon)} s of generating, {latest}",
    )


def _per_instance_serves_many(study: Study) -> list[Evidence]:
    """The batch size with the largest T(b)/b keeps 80 % of the highest throughput, so that choosing by it serves many users."""
    by_slice = {key: {c.axes["batch_size"]: c for c in of} for key, of in slices(study.cells, ("batch_size",)).items()}
    found = []
    for entry in study.best_batches:
        batches = entry["batch_sizes"]
        if 1 not in batches or max(batches) < MANY_USERS_BATCH:
            continue
        cells = by_slice[tuple(entry[axis] for axis in AXES if axis != "batch_size")]
        peak = entry["throughput_peak"]
        kept = {b: _share(study, cells, b, peak) for b in {entry["argmax"], *entry["argmax_not_ruled_out"]}}
        verdict = _keeps_most([share for share in kept.values() if share is not None])
        if verdict == CONFIRMED and peak == max(batches):
            verdict = UNDECIDED  # a larger batch may raise the throughput that is to be kept
        share = kept[entry["argmax"]]
        text = (
            f"T(b)/b is largest at b = {entry['argmax']}, with {'–' if share is None else interval(share)} of the highest throughput "
            f"(b = {peak}); 80 % of each sequence's speed is kept up to b = {entry['largest_keeping_80']}; for {_where(entry)}"
        )
        found.append(Evidence(_where(entry), str(entry["hardware"]), verdict, text, list(entry["jobs"])))
    return found


def _share(study: Study, cells: Mapping[int, Cell], batch: int, peak: int) -> dict[str, float] | None:
    """T(batch) / T(peak) with its interval; exactly 1 for the peak itself."""
    if batch == peak:
        return {"value": 1.0, "low": 1.0, "high": 1.0}
    ratio = cell_ratio(cells[batch], cells[peak], "throughput_tok_s", study.facts)
    return None if ratio is None else ratio.as_dict()


def _keeps_most(shares: Sequence[Mapping[str, float]]) -> str:
    """Of every batch size that may have the largest T(b)/b, whether it surely keeps, or surely loses, so much."""
    if shares and all(share["low"] >= KEEPS_SHARE for share in shares):
        return CONFIRMED
    return REFUTED if shares and all(share["high"] < KEEPS_SHARE for share in shares) else UNDECIDED


CLAIMS: tuple[Claim, ...] = (
    Claim("int4-when-tight", "INT4 is for tight memory only: a wider precision is faster, and those that are need more memory (by 5 %)",
          "quantization method selection", "one model at int4 and a wider precision, batch size 1", _int4_when_tight),
    Claim("gptq-offline", "GPTQ suits offline deployment: within a day of generating it earns back what its quantization took, "
          "beside INT4", "quantization method selection", "one model at gptq (quantized here) and int4", _gptq_earns_its_making),
    Claim("many-users", "For many users the batch size is chosen by T(b)/b: the largest keeps 80 % of the highest throughput",
          "batch size and sequence length optimization", "batch 1 and at least one of 4 or more, beyond the peak of throughput",
          _per_instance_serves_many),
)  # fmt: skip


def _positive(cell: Cell, *metrics: str) -> bool:
    return all((estimate := cell.estimate(metric)) is not None and estimate.value > 0 for metric in metrics)


def _saving(cell: Cell, other: Cell) -> float:
    """Share of `other`'s peak memory that `cell` saves; negative where it takes more."""
    mine, theirs = cell.estimate("memory_bytes"), other.estimate("memory_bytes")
    return 0.0 if mine is None or theirs is None else 1 - mine.value / theirs.value


def _speed(cell: Cell) -> float:
    estimate = cell.estimate("throughput_tok_s")
    return 0.0 if estimate is None else estimate.value


def _where(axes: Mapping[str, Any]) -> str:
    """The slice; without the precision where several are compared, which the sentence names itself."""
    return slice_text({axis: axes.get(axis) for axis in AXES if axis != "quantization" or "argmax" in axes})


def _evidence(cell: Cell, verdict: str, text: str, cells: Sequence[Cell]) -> Evidence:
    return Evidence(_where(cell.axes), str(cell.axes["hardware"]), verdict, text, [j for c in cells for j in c.jobs])
