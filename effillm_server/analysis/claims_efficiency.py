"""The paper's claims about quantization, the best batch size, cost and sockets."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

from effillm_server.analysis.cells import Cell, slices
from effillm_server.analysis.claims import CONFIRMED, REFUTED, UNDECIDED, Claim, Evidence, Study, above, in_range
from effillm_server.analysis.efficiency import QUANTIZATION_AXES, theoretical_bits
from effillm_server.analysis.facts import UNQUANTIZED
from effillm_server.analysis.pareto import pareto
from effillm_server.analysis.ratios import Ratio, cell_ratio
from effillm_server.analysis.words import compared, interval, slice_text
from effillm_server.contract.quantization import method_of

REDUCTION_TOLERANCE = 0.05
UP_TO_TOLERANCE = 0.10
CLOSE = (0.9, 1.1)
PAPER_BEST_BATCH = (4, 16)
PAPER_PEAK_BATCH = (4, 32)
CARD = "rtx-4090"
# The paper's GPTQ and INT4 have four bits, its INT8 eight: (method, bits), whatever other options a label names.
GPTQ, INT4, INT8 = ("gptq", 4), ("int4", 4), ("int8", 8)


def _keeps(precision: str, low: float, high: float) -> Callable[[Study], list[Evidence]]:
    """Judge of "`precision` keeps between low and high of the speed": against FP16 where measured, else what there is."""

    def judge(study: Study) -> list[Evidence]:
        found = []
        for entry in _preferred(study, precision):
            speed = entry["efficiency"]
            if speed is not None:
                text = f"{precision} runs at {interval(speed)} times {entry['baseline']} for {_where(entry)}"
                found.append(_evidence(entry, in_range(speed, low, high), text))
        return found

    return judge


def _saves(precision: str, tolerance: float) -> Callable[[Study], list[Evidence]]:
    """Judge of "`precision` saves what its bits say", by the measured peak during inference at batch size 1."""

    def judge(study: Study) -> list[Evidence]:
        found = []
        for entry in _preferred(study, precision):
            measured, theory = entry["memory_reduction_measured"], entry["memory_reduction_theory"]
            if measured is not None and entry["batch_size"] == 1:
                verdict = CONFIRMED if measured >= theory - tolerance else REFUTED
                text = (
                    f"{precision} takes {compared(measured)} peak memory than {entry['baseline']} (its bits say "
                    f"{compared(theory)}; weights alone {compared(entry['weights_reduction_measured'])}) for {_where(entry)}"
                )
                found.append(_evidence(entry, verdict, text))
        return found

    return judge


def _gptq_beats_int4(study: Study) -> list[Evidence]:
    return [
        _pair_evidence(cell, other, found, above(found.as_dict(), 1.0))
        for cell, other, found in _precision_pairs(study, GPTQ, INT4)
    ]


def _gptq_close_to_int8(study: Study) -> list[Evidence]:
    return [
        _pair_evidence(cell, other, found, in_range(found.as_dict(), *CLOSE))
        for cell, other, found in _precision_pairs(study, GPTQ, INT8)
    ]


def _best_batch(study: Study) -> list[Evidence]:
    low, high = PAPER_BEST_BATCH
    found = []
    for entry in study.best_batches:
        if not {1} < set(entry["batch_sizes"]) or max(entry["batch_sizes"]) < low:
            continue
        contenders = [low <= batch <= high for batch in entry["argmax_not_ruled_out"]]
        verdict = CONFIRMED if all(contenders) else UNDECIDED if any(contenders) else REFUTED
        text = (
            f"T(b)/b is largest at b = {entry['argmax']} (not ruled out: {_listed(entry['argmax_not_ruled_out'])}); 80 % of it "
            f"is kept up to b = {entry['largest_keeping_80']} for {_where(entry)}"
        )
        found.append(_evidence(entry, verdict, text))
    return found


def _peak_batch(study: Study) -> list[Evidence]:
    low, high = PAPER_PEAK_BATCH
    found = []
    for entry in study.best_batches:
        peak, largest = entry["throughput_peak"], max(entry["batch_sizes"])
        if largest < low:
            continue
        if peak == largest and peak <= high:
            verdict, said = UNDECIDED, f"throughput still rises at the largest batch measured, b = {peak},"
        else:
            verdict, said = CONFIRMED if low <= peak <= high else REFUTED, f"throughput peaks at b = {peak}"
        found.append(_evidence(entry, verdict, f"{said} for {_where(entry)}"))
    return found


def _card_is_cheapest(study: Study) -> list[Evidence]:
    """An RTX 4090 gives most tokens per second per dollar among the priced devices that ran the same cell."""
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = defaultdict(list)
    for entry in study.cost:
        if entry["tok_s_per_usd"] is not None:
            key = tuple(
                entry[a] for a in ("model", "weights", "quantization", "batch_size", "sequence_length", "workload")
            )
            groups[key].append(entry)
    found = []
    for members in groups.values():
        named = {entry["hardware"]: entry for entry in members}
        if CARD in named and len(named) > 1:
            best = max(named.values(), key=lambda entry: float(entry["tok_s_per_usd"]))
            verdict = CONFIRMED if best["hardware"] == CARD else REFUTED
            text = f"{best['hardware']} gives most tokens per dollar of {len(named)} devices for {_where({**best, 'hardware': None})}"
            found.append(Evidence(_where(best), CARD, verdict, text, [job for e in members for job in e["jobs"]]))
    return found


def _sockets_help(study: Study) -> list[Evidence]:
    """More processor sockets, more throughput, for the same cell on processors only."""
    groups: dict[tuple[Any, ...], dict[int, Cell]] = defaultdict(dict)
    for cell in study.cells:
        on_processor = [row for row in cell.rows if row.get("vram_peak_bytes") is None and row.get("processor_sockets")]
        for count in {int(row["processor_sockets"]) for row in on_processor}:
            members = tuple(row for row in on_processor if row["processor_sockets"] == count)
            key = tuple(value for axis, value in cell.axes.items() if axis != "hardware")
            groups[key][count] = Cell(cell.axes, members)
    found = []
    for by_count in groups.values():
        if len(by_count) > 1:
            few, many = by_count[min(by_count)], by_count[max(by_count)]
            speed = cell_ratio(many, few, "throughput_tok_s", study.facts)
            if speed is not None:
                text = f"{max(by_count)} sockets run at {interval(speed.as_dict())} times {min(by_count)} for {_where(many.axes)}"
                found.append(_evidence({**many.axes, "jobs": many.jobs + few.jobs}, above(speed.as_dict(), 1.0), text))
    return found


def _int8_balances(study: Study) -> list[Evidence]:
    """INT8 as the default: no other precision of the slice is both faster and smaller."""
    found = []
    for members in slices(study.cells, QUANTIZATION_AXES).values():
        usable = [c for c in members if c.estimate("throughput_tok_s") and c.estimate("memory_gb")]
        names = [cell.axes["quantization"] for cell in usable]
        if "int8" not in names or len(names) < 2 or not set(names) & set(UNQUANTIZED):
            continue
        points = [{m: e.value for m in ("throughput_tok_s", "memory_gb") if (e := c.estimate(m))} for c in usable]
        front = {names[k] for k in pareto(points, {"throughput_tok_s": "max", "memory_gb": "min"})}
        verdict = CONFIRMED if "int8" in front else REFUTED
        text = f"best in speed or memory: {_listed(sorted(front))}, of {_listed(names)}, for {_where(usable[0].axes, precision=False)}"
        axes = {**usable[names.index("int8")].axes, "jobs": [job for cell in usable for job in cell.jobs]}
        found.append(_evidence(axes, verdict, text))
    return found


def _fp16_is_fastest(study: Study) -> list[Evidence]:
    found = []
    for members in slices(study.cells, QUANTIZATION_AXES).values():
        by_name = {cell.axes["quantization"]: cell for cell in members if cell.estimate("throughput_tok_s")}
        if "fp16" not in by_name or len(by_name) < 2:
            continue
        best = max(by_name, key=lambda name: _speed(by_name[name]))
        rival = max((n for n in by_name if n != "fp16"), key=lambda name: _speed(by_name[name]))
        speed = cell_ratio(by_name["fp16"], by_name[rival], "throughput_tok_s", study.facts)
        if speed is not None:
            place = _where(members[0].axes, precision=False)
            text = f"{best} is fastest; fp16 runs at {interval(speed.as_dict())} times {rival} for {place}"
            jobs = by_name["fp16"].jobs + by_name[rival].jobs
            found.append(_evidence({**by_name["fp16"].axes, "jobs": jobs}, above(speed.as_dict(), 1.0), text))
    return found


CLAIMS: tuple[Claim, ...] = (
    Claim("int8-speed-text", "INT8 keeps 95 to 100 % of FP16 throughput", "performance impact of quantization",
          "one model at int8 and an unquantized precision", _keeps("int8", 0.95, 1.0)),
    Claim("int8-speed-abstract", "INT8 keeps 90 to 95 % of baseline performance", "abstract",
          "one model at int8 and an unquantized precision", _keeps("int8", 0.90, 0.95)),
    Claim("int8-memory", "INT8 halves the memory of FP16 (saves what its bits say, within 5 points)",
          "impact of quantization on memory usage",
          "one model at int8 and an unquantized precision, batch size 1", _saves("int8", REDUCTION_TOLERANCE)),
    Claim("int4-speed", "INT4 loses 10 to 30 % of throughput", "performance impact of quantization",
          "one model at int4 and an unquantized precision", _keeps("int4", 0.70, 0.90)),
    Claim("int4-memory", "INT4 saves up to 75 % of FP16's memory (what its bits say, within 10 points)",
          "impact of quantization on memory usage",
          "one model at int4 and an unquantized precision, batch size 1", _saves("int4", UP_TO_TOLERANCE)),
    Claim("gptq-int4", "GPTQ is faster than INT4", "quantization trade-offs", "one model at 4-bit gptq and int4", _gptq_beats_int4),
    Claim("gptq-int8", "GPTQ is close to INT8 (within 10 %)", "quantization trade-offs", "one model at 4-bit gptq and int8",
          _gptq_close_to_int8),
    Claim("b-opt", "T(b)/b is largest at a batch size of 4 to 16", "per-instance efficiency",
          "batch 1 and at least one of 4 to 16", _best_batch),
    Claim("peak-batch", "Throughput peaks at a batch size of 4 to 32", "batch size optimization",
          "several batch sizes, beyond the peak", _peak_batch),
    Claim("rtx-4090", "An RTX 4090 gives most tokens per dollar", "hardware efficiency analysis",
          "an RTX 4090 and another priced device on the same cell", _card_is_cheapest),
    Claim("sockets", "More sockets make processors faster", "hardware selection", "the same cell on 1 and on more sockets",
          _sockets_help),
    Claim("int8-default", "INT8 is a good default: nothing else is both faster and smaller", "quantization method selection",
          "one model at int8 and an unquantized precision", _int8_balances),
    Claim("fp16-fastest", "FP16 is the fastest precision where memory allows it", "quantization method selection",
          "one model at fp16 and another precision", _fp16_is_fastest),
)  # fmt: skip


def _preferred(study: Study, precision: str) -> list[Mapping[str, Any]]:
    """Entries of `precision`, each slice against one baseline: FP16 first, then BF16, then FP32."""
    best: dict[tuple[Any, ...], Mapping[str, Any]] = {}
    for entry in study.quantization:
        if entry["quantization"] == precision:
            key = tuple(v for a, v in entry.items() if a in _PLACE)
            known = best.get(key)
            if known is None or UNQUANTIZED.index(entry["baseline"]) < UNQUANTIZED.index(known["baseline"]):
                best[key] = entry
    return list(best.values())


_PLACE = (
    "model", "weights", "engine", "batch_size", "sequence_length", "workload", "generate_tokens", "hardware", "runtime",
)  # fmt: skip


def _precision_pairs(study: Study, kind: tuple[str, float], other: tuple[str, float]) -> list[tuple[Cell, Cell, Ratio]]:
    """Every cell of one (method, bits) with every one of another in its slice, whatever their labels' further options."""
    found = []
    for members in slices(study.cells, QUANTIZATION_AXES).values():
        for cell in (cell for cell in members if _kind(cell) == kind):
            for than in (than for than in members if _kind(than) == other):
                speed = cell_ratio(cell, than, "throughput_tok_s", study.facts)
                if speed is not None:
                    found.append((cell, than, speed))
    return found


def _kind(cell: Cell) -> tuple[str, float | None]:
    return method_of(cell.axes["quantization"]), theoretical_bits(cell)


def _pair_evidence(cell: Cell, other: Cell, found: Ratio, verdict: str) -> Evidence:
    name, than = cell.axes["quantization"], other.axes["quantization"]
    text = f"{name} runs at {interval(found.as_dict())} times {than} for {_where(cell.axes, precision=False)}"
    return _evidence({**cell.axes, "jobs": cell.jobs + other.jobs}, verdict, text)


def _evidence(entry: Mapping[str, Any], verdict: str, text: str) -> Evidence:
    return Evidence(_where(entry), str(entry["hardware"]), verdict, text, list(entry["jobs"]))


def _where(entry: Mapping[str, Any], *, precision: bool = True) -> str:
    axes = {axis: entry.get(axis) for axis in _PLACE}
    return slice_text(axes | ({"quantization": entry.get("quantization")} if precision else {}))


def _speed(cell: Cell) -> float:
    estimate = cell.estimate("throughput_tok_s")
    return 0.0 if estimate is None else estimate.value


def _listed(values: Any) -> str:
    return ", ".join(map(str, values))
