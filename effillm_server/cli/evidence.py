"""What a job's loaded weights were: how they are quantized, by which plan, and what that cost in quality."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from effillm_server.cli.render import console, print_facts, print_table
from effillm_server.contract.units import format_bytes, format_seconds

Record = Mapping[str, Any]


def show(job: Record) -> None:
    """Print what is known of the weights of a measured job; nothing for any other."""
    result = job.get("result") or {}
    model = (result.get("child") or {}).get("loaded_model") or {}
    if not model:
        return
    quantized = (model.get("details") or {}).get("quantization") or {}
    facts = quantization(model, quantized) | quality(result.get("row") or {}, model.get("quality") or {})
    if any(value is not None for value in facts.values()):
        console().print("")
        print_facts(facts)
    plan = (quantized.get("facts") or {}).get("plan")
    if plan:
        console().print("")
        print_table(("layers", "bits"), plan_lines(plan), empty="")


def quantization(model: Record, quantized: Record) -> dict[str, str | None]:
    """How the weights are stored, in words."""
    layers = quantized.get("layers") or {}
    seconds, disk = quantized.get("seconds"), quantized.get("disk_bytes")
    facts = quantized.get("facts") or {}
    training, calibration = facts.get("training") or {}, facts.get("calibration") or {}
    return {
        "weights": f"{format_bytes(model['weight_bytes'])}, {model['bits_per_weight']:.3g} bits each",
        "quantized layers": ", ".join(f"{count} {name}" for name, count in layers.items()) or None,
        "time to quantize": None if seconds is None else format_seconds(seconds),
        "size on disk": None if disk is None else format_bytes(disk),
        "plan": _plan(facts),
        "calibrated on": _text(calibration),
        "trained on": _training(training),
    }  # fmt: skip


def quality(row: Record, found: Record) -> dict[str, str | None]:
    """What the weights' quality is, in words; empty where nobody asked for it."""
    if not found:
        return {}
    scores = [f"{task['task']} {task['metric']} {task['value']:.3g}" for task in found.get("tasks") or ()]
    share = row.get("dequantization_share_decode")
    return {
        "perplexity": _interval(row, "perplexity", "perplexity_low", "perplexity_high", "{:.4g}"),
        "perplexity rise": _interval(row, "quality_loss", "quality_loss_ci95_low", "quality_loss_ci95_high", "{:+.2%}"),
        "agreement": _agreement(row, found.get("agreement") or {}),
        "tasks": ", ".join(scores) or None,
        "dequantization": None if share is None else f"{share:.0%} of decoding time, by the profiler",
        "about quality": row.get("quality_note"),
    }  # fmt: skip


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


def _training(training: Record) -> str | None:
    if not training:
        return None
    return f"{_text(training)}, {training['steps']} steps, learning rate {training['learning_rate']:g}"


def _agreement(row: Record, agreement: Record) -> str | None:
    if not agreement:
        return None
    kl = f"mean KL {row['mean_kl']:.3g} nats"
    return f"{row['token_agreement']:.1%} of tokens, {kl}, with {agreement['reference']}"


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
