"""What a job's loaded weights were: how they are quantized, by which plan, and what that cost in quality."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from effillm_server.cli.render import console, print_facts, print_table
from effillm_server.contract.units import format_bytes, format_seconds

Record = Mapping[str, Any]
MOST_KINDS = 40  # lines of layers; a model of blocks has some ten
MOST_OPERATIONS = 5
# Of methods whose evidence does not name its library; methods of ours have none.
LIBRARIES = {
    "int8": "bitsandbytes", "int4": "bitsandbytes", "int8-dynamic": "torchao", "int4-weight-only": "torchao",
}  # fmt: skip


def show(job: Record) -> None:
    """Print what is known of the weights of a measured job; nothing for any other."""
    result = job.get("result") or {}
    model = (result.get("child") or {}).get("loaded_model") or {}
    if not model:
        return
    row = result.get("row") or {}
    quantized = (model.get("details") or {}).get("quantization") or {}
    facts = quantization(model, quantized, _versions(result)) | speed(row) | quality(row, model.get("quality") or {})
    if any(value is not None for value in facts.values()):
        console().print("")
        print_facts(facts)
    _show_layers(quantized)


def _show_layers(quantized: Record) -> None:
    plan = (quantized.get("facts") or {}).get("plan") or {}
    lines = layer_lines(quantized)
    if lines:
        console().print("")
        print_table(("~layers", ">count", "stored"), lines, empty="")
    if plan:
        console().print("")
        print_table(("layers", "bits"), plan_lines(plan), empty="")


def quantization(model: Record, quantized: Record, versions: Record) -> dict[str, str | None]:
    """How the weights are stored, in words; `versions` are those of the packages of the runtime that measured."""
    layers = quantized.get("layers") or {}
    seconds, disk = quantized.get("seconds"), quantized.get("disk_bytes")
    facts = quantized.get("facts") or {}
    training, calibration = facts.get("training") or {}, facts.get("calibration") or {}
    return {
        "weights": f"{format_bytes(model['weight_bytes'])}, {model['bits_per_weight']:.3g} bits each",
        "quantized layers": ", ".join(f"{count} {name}" for name, count in layers.items()) or None,
        "quantized by": _library(quantized, versions),
        "time to quantize": None if seconds is None else format_seconds(seconds),
        "size on disk": None if disk is None else format_bytes(disk),
        "plan": _plan(facts),
        "calibrated on": _text(calibration),
        "trained on": _training(training),
    }  # fmt: skip


def speed(row: Record) -> dict[str, str | None]:
    """What quantization changed of speed and memory, and how far the device is used, in words."""
    partner, saved = row.get("unquantized_partner"), row.get("memory_reduction_measured")
    kept = _interval(
        row,
        "quantization_efficiency",
        "quantization_efficiency_ci95_low",
        "quantization_efficiency_ci95_high",
        "{:.3g}",
    )
    reached = {
        "of the memory bandwidth, decoding": row.get("mbu_decode"), "of the matrix rate, prefill": row.get("mfu_prefill"),
    }  # fmt: skip
    return {
        "speed": None if kept is None else f"{kept} times that of {partner}",
        "peak memory": None if saved is None else f"{abs(saved):.0%} {'less' if saved >= 0 else 'more'} than {partner}",
        "reached": ", ".join(f"{share:.0%} {what}" for what, share in reached.items() if share is not None) or None,
        "why": row.get("quantization_reason"),
    }


def quality(row: Record, found: Record) -> dict[str, str | None]:
    """What the weights' quality is, in words; empty where nobody asked for it."""
    if not found:
        return {}
    return {
        "perplexity": _interval(row, "perplexity", "perplexity_low", "perplexity_high", "{:.4g}"),
        "perplexity rise": _interval(row, "quality_loss", "quality_loss_ci95_low", "quality_loss_ci95_high", "{:+.2%}"),
        "agreement": _agreement(row, found.get("agreement") or {}),
        "tasks": ", ".join(row.get("tasks") or ()) or None,
        "dequantization": _dequantization(found.get("shares") or {}),
        "largest operations": _operations(found.get("shares") or {}),
        "about quality": row.get("quality_note"),
    }  # fmt: skip


def layer_lines(quantized: Record) -> list[tuple[str, int, str]]:
    """Every kind of linear layer by name, numbers as `*`, how many there are, and whether they are quantized.

    Nothing where none is; kinds of a plan are left to `plan_lines`, which says their bits.
    """
    if not quantized.get("modules"):
        return []
    planned = {kind for kind, _ in plan_lines((quantized.get("facts") or {}).get("plan") or {})}
    stored = {"quantized": quantized.get("modules") or {}, "as it was": quantized.get("kept") or {}}
    lines = [
        (name, count, how) for how, names in stored.items() for name, count in names.items() if name not in planned
    ]
    return lines[:MOST_KINDS] + ([("further kinds", len(lines) - MOST_KINDS, "")] if len(lines) > MOST_KINDS else [])


def plan_lines(plan: Mapping[str, int]) -> list[tuple[str, str]]:
    """Layers of one kind on a line, numbers as `*`, with their bits in order of the layers; long runs are counted."""
    kinds: dict[str, list[int]] = {}
    for name, bits in plan.items():
        kinds.setdefault(re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name), []).append(bits)
    return [(kind, _bits(bits)) for kind, bits in kinds.items()]


def _bits(bits: list[int]) -> str:
    if len(bits) <= 16:
        return " ".join(map(str, bits))
    return ", ".join(f"{count} x {each}" for each, count in sorted(Counter(bits).items()))


def _plan(facts: Record) -> str | None:
    if "plan" not in facts:
        return None
    budget = facts.get("budget_bytes")
    kept = f" of {format_bytes(budget)} allowed" if budget is not None else ""
    rise = facts.get("measured_rise")
    told = "" if rise is None else f", perplexity {rise:+.2%} on the calibration text"
    return f"{facts['mean_bits']:.3g} bits on average, {format_bytes(facts['plan_bytes'])}{kept}{told}"


def _library(quantized: Record, versions: Record) -> str | None:
    """The library with its version and, where that is known, whether it made the checkpoint here."""
    facts, package = quantized.get("facts") or {}, LIBRARIES.get(str(quantized.get("method")))
    if facts.get("library"):
        made = {"here": ", made here", "published": ", a published checkpoint"}
        return f"{facts['library']}{made.get(str(facts.get('made')), '')}"
    return f"{package} {versions[package]}" if package is not None and versions.get(package) else None


def _versions(result: Record) -> Record:
    fingerprint = (result.get("measurement") or {}).get("fingerprint") or {}
    return (fingerprint.get("software") or {}).get("versions") or {}


def _training(training: Record) -> str | None:
    if not training:
        return None
    return f"{_text(training)}, {training['steps']} steps, learning rate {training['learning_rate']:g}"


def _agreement(row: Record, agreement: Record) -> str | None:
    if not agreement:
        return None
    kl = f"mean KL {row['mean_kl']:.3g} nats"
    return f"{row['token_agreement']:.1%} of tokens, {kl}, with {agreement['reference']}"


def _dequantization(shares: Record) -> str | None:
    if not shares:
        return None
    decode, prefill = shares["decode_dequantization"], shares["prefill_dequantization"]
    return f"{decode:.0%} of decoding time, {prefill:.0%} of prefill, by the profiler"


def _operations(shares: Record) -> str | None:
    """The operations that take most of the decoding time, each with its share."""
    by_size = sorted((shares.get("decode_operations") or {}).items(), key=lambda pair: -pair[1])
    return ", ".join(f"{name} {share:.0%}" for name, share in by_size[:MOST_OPERATIONS]) or None


def _text(described: Record) -> str | None:
    return f"{described['text']}, {described['tokens']:,} tokens" if described.get("text") else None


def _interval(row: Record, name: str, low: str, high: str, form: str) -> str | None:
    if row.get(name) is None:
        return None
    bounds = (
        ""
        if row.get(low) is None or row.get(high) is None
        else f" ({form.format(row[low])} to {form.format(row[high])})"
    )
    return form.format(row[name]) + bounds
