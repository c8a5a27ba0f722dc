"""Values in words, as the pages show them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import yaml

from effillm_server.contract.job import Cell
from effillm_server.contract.units import format_bytes, format_seconds

DASH = "–"
STATES = {"leased": "running"}
REASONS = {
    "context_window": "beyond the context window",
    "unsupported": "not supported on this hardware",
    "implied": "larger than one that ran out of memory",
    "out_of_device_memory": "out of device memory",
    "out_of_host_memory": "out of host memory",
    "time_limit": "reached its time limit",
}
ORDER = ("measured", "infeasible", "failed", "cancelled", "leased", "pending")


def number(value: float | None) -> str:
    """`value` to three significant digits; large ones with k or M."""
    if value is None:
        return DASH
    for factor, sign in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= factor:
            scale = 1e3 if sign == "k" else factor
            return f"{value / scale:.3g}{sign}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def seconds(value: float | None) -> str:
    return DASH if value is None else format_seconds(value)


def size(value: float | None) -> str:
    return DASH if value is None else format_bytes(value)


def percent(share: float | None) -> str:
    return DASH if share is None else f"{share:+.1%}"


def state(value: str) -> str:
    """The state as people say it."""
    return STATES.get(value, value)


def reason(value: str | None) -> str:
    return DASH if value is None else REASONS.get(value, value.replace("_", " "))


def tally(counts: Mapping[Any, int]) -> str:
    """`9 measured, 3 infeasible`."""
    parts = [f"{count:,} {state(name)}" for name in ORDER if (count := counts.get(name, 0))]
    return ", ".join(parts) or "no jobs"


def ago(moment: datetime | str | None) -> str:
    """How long ago, in one unit."""
    if moment is None:
        return "never"
    when = datetime.fromisoformat(moment) if isinstance(moment, str) else moment
    passed = max(0.0, (datetime.now(UTC) - when).total_seconds())
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if passed >= length:
            return f"{passed // length:.0f} {unit} ago"
    return f"{passed:.0f} s ago" if passed >= 1 else "just now"


def moment(value: datetime | None) -> str:
    return DASH if value is None else value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def short(model: str) -> str:
    """A model without its organisation."""
    return model.rpartition("/")[2]


def cell(of: Cell) -> str:
    """A cell of the matrix in one phrase."""
    parts = [short(of.model), of.quantization, f"b = {of.batch_size}"]
    parts += [f"s = {of.sequence_length}"] if of.sequence_length else [of.workload]
    parts += [f"n = {of.generate_tokens}"]
    parts += [f"repeat {of.repeat}"] if of.repeat > 1 else []
    return f"{', '.join(parts)} on {of.hardware}"


def plain_yaml(value: Any) -> str:
    """`value` as YAML that a person would write."""
    text = yaml.safe_dump(value, sort_keys=False, allow_unicode=True, default_flow_style=None, width=100)
    return str(text)


def label(name: str) -> str:
    """A column's name as words: `ram_peak_bytes` is `ram peak`."""
    if name.endswith("_tok_s"):
        return name.removesuffix("_tok_s").replace("_", " ") + " (tokens/s)"
    for suffix in ("_bytes", "_s", "_j"):
        name = name.removesuffix(suffix)
    return name.replace("_", " ")


def value(name: str, of: Any) -> str:
    """A value by the unit that its name ends with."""
    if of is None:
        return DASH
    if isinstance(of, bool):
        return "yes" if of else "no"
    if isinstance(of, int | float):
        if name.endswith("_bytes"):
            return format_bytes(of)
        is_duration = name.endswith("_s") and not name.endswith(("_tok_s", "_bytes_s", "_flop_s"))
        return format_seconds(of) if is_duration and of >= 0 else number(of)
    if isinstance(of, Mapping):
        return ", ".join(f"{label(str(key))} {value(str(key), inner)}" for key, inner in of.items()) or DASH
    if isinstance(of, list | tuple):
        return ", ".join(value(name, inner) for inner in of) or DASH
    return str(of)
