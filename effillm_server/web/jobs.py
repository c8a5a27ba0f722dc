"""The page of a cell: its attempts and logs, every iteration and token, memory, conditions, fingerprint, how to run it again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import urlencode

from fastapi import APIRouter, Request, Response
from starlette.responses import HTMLResponse, RedirectResponse

from effillm_server.api import jobs as api
from effillm_server.api import sweeps
from effillm_server.api.auth import Reader, Submitter, may_change
from effillm_server.api.services import JobId, Served
from effillm_server.api.views import JobDetail, SweepView
from effillm_server.contract.account import beside
from effillm_server.contract.job import Cell
from effillm_server.contract.sweep import MeasurementPlan, Weights
from effillm_server.web import timeline, words
from effillm_server.web.sweeps import live_of
from effillm_server.web.templating import page

STAGES = {"baseline": "before load", "loaded": "after load", "released": "after unload"}
PEAKS = {"peak_prefill": "peak, prefill", "peak_decode": "peak, decode", "steady": "steady state"}
# Axes of which a matrix shows one value at a time.
CHOSEN = ("hardware", "workload", "generate_tokens", "engine", "runtime", "repeat")
READINGS = ("ram_bytes", "ram_peak_bytes", "vram_bytes", "vram_reserved_bytes")
router = APIRouter(tags=["page-jobs"], include_in_schema=False)


@router.get("/jobs/{job_id}")
def look(request: Request, served: Served, who: Reader, job_id: JobId) -> HTMLResponse:
    """Everything known about one cell."""
    live = live_of(served)
    job = api.look(served, who, job_id)
    sweep = sweeps.view_of(served, who.viewer, job.sweep)
    following = None if job.state.is_terminal else replace(live, stream=f"/v1/events?sweep={job.sweep}")
    return page(
        request, who, "job.html", job=job, sweep=sweep, live=following, may_change=may_change(who, sweep.owner),
        again=again(job, sweep), place=_place(job.cell), **_result(job),
    )  # fmt: skip


@router.post("/jobs/{job_id}/cancel")
def cancel(served: Served, who: Submitter, job_id: JobId) -> Response:
    """Cancelled, and back to the cell."""
    api.cancel(served, who, job_id)
    return RedirectResponse(f"/jobs/{job_id}", 303)


@router.post("/jobs/{job_id}/retry")
def retry(served: Served, who: Submitter, job_id: JobId) -> Response:
    """Back in line, and back to the cell."""
    api.retry(served, who, job_id)
    return RedirectResponse(f"/jobs/{job_id}", 303)


def again(job: JobDetail, sweep: SweepView) -> str:
    """The definition of a sweep of this cell alone."""
    cell = job.cell
    model: dict[str, Any] = {"id": cell.model}
    model |= {"weights": str(cell.weights)} if cell.weights is not Weights.PRETRAINED else {}
    model |= {"revision": cell.revision} if cell.revision else {}
    document: dict[str, Any] = {
        "name": f"cell-{job.id}", "models": [model if len(model) > 1 else cell.model], "hardware": [cell.hardware],
        "quantization": [str(cell.quantization)], "batch_size": [cell.batch_size],
    }  # fmt: skip
    document |= {"sequence_length": [cell.sequence_length]} if cell.sequence_length else {"workload": [cell.workload]}
    document |= {"generate_tokens": [cell.generate_tokens], "engine": [str(cell.engine)], "runtime": [cell.runtime]}
    plan: MeasurementPlan = sweep.definition.measurement
    changed = plan.model_dump(mode="json", exclude_defaults=True)
    changed.pop("repeats", None)
    document |= {"measurement": changed} if changed else {}
    if (quality := sweep.definition.quality) is not None:
        document["quality"] = quality.model_dump(mode="json", exclude_defaults=True)
    return words.plain_yaml(document)


def _place(cell: Cell) -> str:
    """The query that shows this cell in its sweep's matrix."""
    return urlencode({axis: getattr(cell, axis) for axis in CHOSEN})


def _result(job: JobDetail) -> dict[str, Any]:
    if job.result is None:
        return {"row": None}
    row, measurement = job.result.row, job.result.measurement
    conditions = measurement.get("conditions") or {}
    return {
        "row": row,
        "headline": _headline(row),
        "timeline": timeline.drawn(job.result.samples),
        "iterations": timeline.iterations(job.result.samples, job.cell.batch_size),
        "memory": _memory(measurement, job.result.child or measurement.get("child") or {}),
        "account": [
            (words.label(name), found, predicted)
            for name, found, predicted in beside((measurement.get("memory") or {}).get("account") or {})
        ],
        "conditions": _facts(
            {"network": (measurement.get("details") or {}).get("network")} | (conditions.get("watched") or {})
        ),
        "not_watched": [(words.label(name), why) for name, why in (conditions.get("not_watched") or {}).items()],
        "fingerprint": _fingerprint(measurement.get("fingerprint") or {}),
    }


def _headline(row: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Title, value, and how sure that is."""
    iterations = f"{row['iterations']} iterations, {row['warmup_iterations']} to warm up"
    found = [
        ("throughput", f"{words.number(row['throughput_tok_s_mean'])} tokens/s", _interval(row, "throughput_tok_s")),
        ("time to first token", words.seconds(row["ttft_s_mean"]), _interval(row, "ttft_s")),
        ("time per further token", words.seconds(row["tpot_s_mean"]), _interval(row, "tpot_s")),
        ("gap between tokens, 99 of 100 below", words.seconds(row["itl_s_p99"]), f"{row['itl_samples']} gaps"),
        ("peak memory", words.size(row["vram_peak_bytes"] or row["ram_peak_bytes"]), "VRAM" if row["vram_peak_bytes"] else "RAM"),
        ("energy per token", f"{words.number(row['energy_per_token_j'])} J" if row["energy_per_token_j"] else words.DASH,
         row["energy_source"] or ""),
        ("stopped", (row["stop_reason"] or words.DASH).replace("_", " "), iterations),
    ]  # fmt: skip
    return found + _stored(row) + _beside(row) + _quality(row)


def _stored(row: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """How the weights are stored, which kernels run them, and what it took to get there."""
    if row.get("bits_per_weight") is None:
        return []
    theory = (
        f"{words.number(row['theoretical_bits'])} without scales" if row.get("theoretical_bits") is not None else ""
    )
    found = [("bits per weight", words.number(row["bits_per_weight"]), theory)]
    if row.get("quantized_by"):
        found.append(("quantized layers", row["quantized_by"], ""))
    if row.get("quantize_s") is not None:
        found.append(("time to quantize", words.seconds(row["quantize_s"]), ""))
    return found


def _beside(row: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Speed and memory against the unquantized partner, how far the device is used, and the reason where one is known."""
    partner, found = row.get("unquantized_partner"), []
    if row.get("quantization_efficiency") is not None:
        low, high = row["quantization_efficiency_ci95_low"], row["quantization_efficiency_ci95_high"]
        interval = f"95 % interval {words.number(low)} to {words.number(high)}"
        found.append((f"speed against {partner}", f"{words.number(row['quantization_efficiency'])} times", interval))
    if (saved := row.get("memory_reduction_measured")) is not None:
        found.append((f"peak memory against {partner}", f"{abs(saved):.0%} {'less' if saved >= 0 else 'more'}", ""))
    for title, name in (
        ("memory bandwidth reached, decoding", "mbu_decode"),
        ("matrix rate reached, prefill", "mfu_prefill"),
    ):
        if row.get(name) is not None:
            found.append((title, f"{row[name]:.0%}", ""))
    if row.get("dequantization_share_decode") is not None:
        prefill = f"{row['dequantization_share_prefill']:.0%} of prefill"
        found.append(("decoding time in dequantization", f"{row['dequantization_share_decode']:.0%}", prefill))
    return found


def _quality(row: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """How well the loaded weights still answer, where that was asked for."""
    scores = [("tasks", ", ".join(row["tasks"]), "")] if row.get("tasks") else []
    if row.get("perplexity") is None:
        return scores
    interval = f"95 % interval {words.number(row['perplexity_low'])} to {words.number(row['perplexity_high'])}"
    found = [("perplexity", words.number(row["perplexity"]), interval)]
    if row.get("token_agreement") is not None:
        found.append(("same next token as unquantized", f"{row['token_agreement']:.1%}", ""))
    if row.get("quality_loss") is not None:
        found.append(("quality lost", f"{row['quality_loss']:.2%}", _loss_interval(row)))
    return found + scores


def _loss_interval(row: Mapping[str, Any]) -> str:
    low, high = row.get("quality_loss_ci95_low"), row.get("quality_loss_ci95_high")
    return "" if low is None or high is None else f"95 % interval {low:.2%} to {high:.2%}"


def _interval(row: Mapping[str, Any], metric: str) -> str:
    low, high = row.get(f"{metric}_ci95_low"), row.get(f"{metric}_ci95_high")
    if low is None or high is None:
        return ""
    show = words.seconds if metric.endswith("_s") and not metric.endswith("tok_s") else words.number
    return f"95 % interval {show(low)} to {show(high)}"


def _memory(measurement: Mapping[str, Any], child: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The five stages, the peak in its two phases; numbers nobody read are None."""
    cell = measurement.get("memory") or {}
    taken = [("baseline", child), ("loaded", child), *((name, cell) for name in PEAKS), ("released", child)]
    return [
        ((STAGES | PEAKS)[name], {key: (source.get(name) or {}).get(key) for key in READINGS}) for name, source in taken
    ]


def _fingerprint(of: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Hardware and software, the nested parts one level down."""
    hardware, software = dict(of.get("hardware") or {}), dict(of.get("software") or {})
    processor, gpu, versions = hardware.pop("processor", {}), hardware.pop("gpu", None), software.pop("versions", {})
    processor.pop("features", None)
    groups = (("", hardware), ("processor ", processor), ("GPU ", gpu or {}), ("", software), ("", versions))
    return [(f"{prefix}{name}", said) for prefix, group in groups for name, said in _facts(group)]


def _facts(of: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(words.label(name), words.value(name, value)) for name, value in of.items() if value not in (None, {}, [])]
