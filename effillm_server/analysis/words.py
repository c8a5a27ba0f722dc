"""Numbers and slices in words, for findings, captions and tables."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from effillm_server.analysis.cells import label

SHORT = {
    "model": "{}", "hardware": "{}", "quantization": "{}", "batch_size": "b = {}", "sequence_length": "s = {}",
    "workload": "workload {}", "generate_tokens": "n = {}", "engine": "engine {}", "runtime": "runtime {}",
}  # fmt: skip
UNREMARKABLE = {"engine": "transformers", "runtime": "default", "workload": "synthetic"}
ALWAYS_HIDDEN = ("dtype", "weights")


def slice_text(axes: Mapping[str, Any]) -> str:
    """`opt-125m, cpu, fp32, b = 1, s = 128, n = 16`; what every sweep has by default is left out."""
    parts = []
    for axis, form in SHORT.items():
        value = axes.get(axis)
        if value is not None and UNREMARKABLE.get(axis) != value:
            parts.append(form.format(label(value) if axis == "model" else value))
    return ", ".join(parts)


def number(value: float | None, digits: int = 3) -> str:
    """`value` to `digits` significant digits without an exponent; an en dash for None."""
    if value is None:
        return "–"
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    places = max(digits - 1 - math.floor(math.log10(abs(value))), 0)
    if places > 6:
        return f"{value:.{digits - 1}e}"
    text = f"{value:,.{places}f}"
    return text.rstrip("0").rstrip(".") if "." in text and places > digits else text


def interval(found: Mapping[str, Any], digits: int = 3) -> str:
    """`0.52 (0.41 to 0.63)`; an open side is said to be open."""
    low = "open" if found["low"] is None else number(found["low"], digits)
    high = "open" if found["high"] is None else number(found["high"], digits)
    return f"{number(found['value'], digits)} ({low} to {high})"


def percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.0%}".replace("-0%", "0%")


def compared(saving: float | None) -> str:
    """Share saved, in words: `35% less`, for a negative one `35% more`."""
    if saving is None:
        return "–"
    return f"{percent(abs(saving))} {'less' if saving >= 0 else 'more'}"


def plural(count: int, noun: str) -> str:
    """`1 cell`, `3 cells`."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")
