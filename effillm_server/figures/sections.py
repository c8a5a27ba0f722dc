"""Sections of the report that are tables: claims, fits, efficiency, limits, validity, hardware, results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from html import escape
from typing import Any

from effillm_server.analysis.cells import cells, label, select
from effillm_server.analysis.words import interval, number, percent, plural, slice_text
from effillm_server.contract.units import format_bytes, format_seconds
from effillm_server.figures.html import Raw, folded, table, tagged, text

Row = Mapping[str, Any]
Pair = Mapping[str, Any]
MOST_FITS = 120
MOST_EVIDENCE = 40


def claims(study: Mapping[str, Any]) -> str:
    lines = []
    for claim in study["claims"]:
        by_hardware = ", ".join(f"{hardware}: {verdict}" for hardware, verdict in claim["by_hardware"].items())
        evidence = table(
            ["where", "verdict", "numbers"],
            [[e["where"], tagged(e["verdict"]), e["text"]] for e in claim["evidence"][:MOST_EVIDENCE]],
        )
        more = (
            folded(f"evidence, {plural(len(claim['evidence']), 'slice')}", evidence) if claim["evidence"] else Raw("")
        )
        lines.append(
            [claim["statement"], tagged(claim["verdict"]), Raw(escape(claim["summary"]) + more), by_hardware or None]
        )
    note = (
        "<p class='muted'>Sentences of the EffiLLM paper, from its own hardware, held against these results. A claim about a range is "
        "confirmed when the 95 % interval lies inside it, refuted when it lies outside, undecided otherwise.</p>"
    )
    return section("claims", "The paper's claims", note + table(["claim", "verdict", "numbers", "by hardware"], lines))


def fits(study: Mapping[str, Any]) -> str:
    lines = []
    for fit in study["fits"][:MOST_FITS]:
        parameters = "; ".join(
            f"{name} {interval(p)}{_paper(p['paper'])}" for name, p in fit["parameters"].items()
        )  # fmt: skip
        check, left = fit["residual_check"], fit["holdout"]
        bend = "–" if check["p"] is None else f"{'yes' if check['curved'] else 'no'}, p = {number(check['p'], 2)}"
        place = slice_text(fit["slice"])
        lines.append([
            fit["formula"], place, parameters, fit["n"], number(fit["r2"], 4), percent(fit["rmse_relative"]), bend,
            percent(left["median_error"]), f"{number(fit['range'][0])} to {number(fit['range'][1])} {fit['x_unit']}",
            "; ".join(fit["remarks"]) or None,
        ])  # fmt: skip
    columns = [
        "law",
        "slice",
        "parameters (95 % interval)",
        "points#",
        "R²#",
        "error#",
        "bend left",
        "unseen points#",
        "range",
        "remarks",
    ]
    beyond = len(study["fits"]) - MOST_FITS
    more = f"<p class='muted'>{beyond} more fits are in the analysis as JSON.</p>" if beyond > 0 else ""
    joint = [[f["formula"], slice_text(f["slice"]), "; ".join(f"{n} {interval(p)}" for n, p in f["parameters"].items()), f["n"]]
             for f in study["batch_exponent_by_sequence"][:MOST_FITS]]  # fmt: skip
    note = (
        "<p class='muted'>Weighted least squares, intervals by profile likelihood. Error: root mean square, relative. Unseen points: "
        "median relative error at points left out of the fit. A curve says nothing outside its range.</p>"
    )
    return section(
        "fits", "Scaling laws",
        note + table(columns, lines, fold="all fits") + more
        + "<h3>Batch exponent by sequence length</h3>" + table(["law", "slice", "parameters", "points#"], joint, fold="all joint fits"),
    )  # fmt: skip


def efficiency(study: Mapping[str, Any]) -> str:
    scaling = [
        [slice_text(e), interval({"value": e["eta"], "low": e["low"], "high": e["high"]})]
        for e in study["batch_scaling"]
    ]
    body = [
        "<h3>Quantization against an unquantized precision</h3>",
        *_by_partner(study, _quantization_table),
        *_why(study),
        "<h3>Best batch size</h3>",
        _best_batch_table(study),
        "<h3>Batch scaling efficiency η = T(b) / (b · T(1))</h3>",
        table(["cell", "η"], scaling, fold="all cells"),
        "<h3>Cost</h3>",
        _cost_table(study),
    ]
    return section("efficiency", "Efficiency", "".join(body))


def _by_partner(study: Mapping[str, Any], draw: Callable[[list[Pair], str], Raw]) -> list[Raw]:
    """Each precision beside its own unquantized partner; the other unquantized ones behind a line to open."""
    own = [e for e in study["quantization"] if e["is_partner"]]
    others = [e for e in study["quantization"] if not e["is_partner"]]
    if not others:
        return [draw(own, "all pairs")]
    title = f"against other unquantized precisions, {plural(len(others), 'pair')}"
    return [draw(own, "all pairs"), folded(title, draw(others, ""))]


def _quantization_table(pairs: list[Pair], fold: str) -> Raw:
    columns = [
        "slice",
        "against",
        "speed kept",
        "first-token ratio",
        "memory saved, theory#",
        "measured#",
        "weights saved#",
        "perplexity rise",
    ]
    lines = [
        [
            slice_text(e), e["baseline"], _ratio(e["efficiency"]), _ratio(e["ttft_ratio"]), percent(e["memory_reduction_theory"]),
            percent(e["memory_reduction_measured"]), percent(e["weights_reduction_measured"]), _rise(e["quality_loss"]),
        ]
        for e in pairs
    ]  # fmt: skip
    return table(columns, lines, fold=fold or None)


def _why(study: Mapping[str, Any]) -> list[str]:
    """How far both sides of each pair run from the device's ceilings, and what that says; nothing where no side was measured."""
    told = [
        e for e in study["quantization"] if any(v is not None for side in e["shares"].values() for v in side.values())
    ]
    if not told:
        return []
    note = (
        "<p class='muted'>MBU of decoding and MFU of prefill: shares of the device's own measured bandwidth and matrix rate that each "
        "side reaches; <i>its</i>: of the precision it is set against. Dequantization: share of decoding and of prefill that turning "
        "codes back into numbers takes, by a profiler at batch size 1. A reason stands where the difference is beyond noise and these "
        "numbers tell it.</p>"
    )
    heading = "<h3>Why a precision is slower or faster here</h3>"
    return [heading, note, *_by_partner({"quantization": told}, _why_table)]


def _why_table(pairs: list[Pair], fold: str) -> Raw:
    lines = [
        [
            slice_text(e), e["baseline"], *_both(e["shares"], "mbu_decode"), *_both(e["shares"], "mfu_prefill"),
            _dequantization(e["shares"]["own"]),
            e["reason"],
        ]
        for e in pairs
    ]  # fmt: skip
    columns = ["slice", "against", "MBU#", "its#", "MFU#", "its#", "dequantization#", "reason"]
    return table(columns, lines, fold=fold or None)


def _dequantization(shares: Mapping[str, float | None]) -> str | None:
    decode, prefill = shares["dequantization_share_decode"], shares["dequantization_share_prefill"]
    return None if decode is None and prefill is None else f"{percent(decode)}, {percent(prefill)}"


def _both(shares: Mapping[str, Mapping[str, float | None]], name: str) -> tuple[str, str]:
    return percent(shares["own"][name]), percent(shares["baseline"][name])


def _best_batch_table(study: Mapping[str, Any]) -> Raw:
    columns = ["slice", "measured b", "T(b)/b largest at#", "not ruled out", "80 % kept up to#", "T largest at#"]
    lines = [
        [
            slice_text(e), ", ".join(map(str, e["batch_sizes"])), e["argmax"], ", ".join(map(str, e["argmax_not_ruled_out"])),
            e["largest_keeping_80"], e["throughput_peak"],
        ]
        for e in study["best_batch"]
    ]  # fmt: skip
    return table(columns, lines, fold="all slices")


def _cost_table(study: Mapping[str, Any]) -> Raw:
    columns = ["cell", "tokens/s per $#", "$ per million tokens#", "price from", "date"]
    lines = [
        [
            slice_text(e),
            number(e["tok_s_per_usd"]),
            number(e["usd_per_million_tokens"]),
            e["price_source"],
            e["price_date"],
        ]
        for e in study["cost"]
    ]
    return table(columns, lines, fold="all cells")


def limits(study: Mapping[str, Any]) -> str:
    lines = []
    for entry in study["frontier"]:
        batch = "; ".join(
            f"s = {e['sequence_length']}: b ≤ {_or_none(e['batch_size'])}{_stopped(e)}" for e in entry["largest_batch"]
        )
        lines.append([slice_text(entry), batch, entry["ran"], entry["infeasible"]])
    note = "<p class='muted'>Largest batch that ran at each sequence length, and what stopped the next one the sweep asked for.</p>"
    return section(
        "limits",
        "What runs",
        note + table(["configuration", "largest batch", "ran#", "did not#"], lines, fold="all configurations"),
    )


def validity(rows: list[Row], study: Mapping[str, Any]) -> str:
    verdicts = study["summary"]["verdicts"]
    reasons = Counter(reason for row in rows for reason in row.get("verdict_reasons") or ())
    outliers = sum(row.get("excluded_outliers") or 0 for row in rows)
    left_out = {why: count for why, count in study["summary"]["left_out"].items() if count}
    said = ", ".join(f"{count:,} {why}" for why, count in left_out.items()) or "nothing"
    refused = study["summary"]["infeasible_reasons"]
    return section(
        "validity", "Validity",
        f"<p>{plural(study['summary']['used'], 'row')} used; left out of fits, figures and comparisons: {escape(said)}. "
        f"{plural(outliers, 'iteration')} marked as outliers and excluded from the statistics.</p>"
        + table(["verdict", "rows#"], [[tagged(v), n] for v, n in verdicts.items()])
        + "<h3>Reasons</h3>" + table(["reason", "rows#"], reasons.most_common())
        + "<h3>Repeated cells: spread between and within processes</h3>" + _variance_table(study)
        + "<h3>Did not run</h3>" + table(["reason", "rows#"], list(refused.items())),
    )  # fmt: skip


def _variance_table(study: Mapping[str, Any]) -> Raw:
    columns = ["cell", "processes#", "between, sd#", "within, sd#", "share between#"]
    lines = [
        [
            slice_text(e),
            e["processes"],
            _small(e["between_relative_sd"]),
            _small(e["within_relative_sd"]),
            percent(e["share_between"]),
        ]
        for e in study["variance"]
    ]
    return table(columns, lines, fold="all repeated cells")


def _small(share: float) -> str:
    return f"{share:.1%}"


def hardware(rows: list[Row]) -> str:
    seen: dict[tuple[Any, Any], list[Any]] = {}
    for row in rows:
        if row.get("state") != "measured":
            continue
        key = (row["hardware"], row["fingerprint"])
        entry = seen.setdefault(
            key, [row["hardware"], row["fingerprint"], _described(row.get("fingerprint_detail")), 0]
        )
        entry[3] += 1
    return section(
        "hardware", "Hardware and software", table(["class", "fingerprint", "what it is", "rows#"], list(seen.values()))
    )


def _described(detail: Mapping[str, Any] | None) -> str | None:
    if not detail:
        return None
    hardware, software = detail.get("hardware") or {}, detail.get("software") or {}
    processor, gpu = hardware.get("processor") or {}, hardware.get("gpu") or {}
    versions = software.get("versions") or {}
    told = [
        gpu.get("name"),
        f"{processor.get('model')}, {processor.get('physical_cores')} cores, {plural(processor.get('sockets') or 0, 'socket')}",
        f"{format_bytes(hardware['memory_bytes'])} memory" if hardware.get("memory_bytes") else None,
        f"Python {software.get('python')}, kernel {software.get('kernel')}",
        ", ".join(
            f"{name} {versions[name]}" for name in ("torch", "transformers", "bitsandbytes") if versions.get(name)
        ),
    ]
    return "; ".join(part for part in told if part)


def results(rows: list[Row]) -> str:
    lines = []
    has_quality = any(row.get("perplexity") is not None for row in rows)
    for cell in cells(select(rows, include_invalid=True).rows):
        row, memory = cell.rows[0], cell.estimate("memory_bytes")
        throughput, first = cell.estimate("throughput_tok_s"), cell.estimate("ttft_s")
        lines.append([
            label(row["model"]), row["hardware"], row["quantization"], row["batch_size"], row["sequence_length"],
            _plus_minus(throughput, number), _plus_minus(first, format_seconds), None if memory is None else format_bytes(memory.value),
            number(row.get("itl_s_p99")), *_quality_cells(cell) * has_quality, len(cell.rows), tagged(str(row["verdict"])),
            ", ".join(map(str, cell.jobs)),
        ])  # fmt: skip
    columns = ["model", "hardware", "precision", "b#", "s#", "tokens/s#", "first token#", "peak memory#", "p99 gap, s#",
               *["perplexity#", "its rise"] * has_quality, "processes#", "verdict", "jobs"]  # fmt: skip
    return section("results", "Results", table(columns, lines, fold="all results"))


def _quality_cells(cell: Any) -> list[str | None]:
    perplexity, loss = cell.estimate("perplexity"), cell.estimate("quality_loss")
    rise = None if loss is None else {"value": loss.value, "low": loss.low, "high": loss.high}
    return [None if perplexity is None else number(perplexity.value, 4), _rise(rise)]


def _plus_minus(estimate: Any, show: Any) -> str | None:
    if estimate is None:
        return None
    half = "" if estimate.low is None or estimate.high is None else f" ± {show((estimate.high - estimate.low) / 2)}"
    return f"{show(estimate.value)}{half}"


def section(name: str, title: str, body: str) -> str:
    return f"<section id='{name}'><h2>{escape(title)}</h2>{body}</section>"


def rests_on(jobs: list[int]) -> str:
    shown = ", ".join(map(str, jobs[:6]))
    return f"(jobs {shown}{f' and {len(jobs) - 6} more' if len(jobs) > 6 else ''})" if jobs else ""


def _ratio(found: Mapping[str, Any] | None) -> str | None:
    return None if found is None else interval(found)


def _rise(loss: Mapping[str, Any] | None) -> str | None:
    """What quantization cost: the rise of perplexity, with its interval."""
    if loss is None:
        return None
    bounds = "" if loss["low"] is None or loss["high"] is None else f" ({loss['low']:.1%} to {loss['high']:.1%})"
    return f"{loss['value']:.1%}{bounds}"


def _paper(claimed: list[float] | None) -> str:
    return f" [paper {claimed[0]:g} to {claimed[1]:g}]" if claimed else ""


def _or_none(value: Any) -> str:
    return "none" if value is None else str(value)


def _stopped(entry: Mapping[str, Any]) -> str:
    return f" ({entry['next_refused']}: {text(entry['reason'])})" if entry["next_refused"] else ""
