"""Units: parsed at the edge, SI inside, pretty only when printed."""

from __future__ import annotations

import re

GB = 10**9

_BYTES = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": GB,
    "tb": 10**12,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}
_SECONDS = {"": 1.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "min": 60.0, "h": 3600.0}
_QUANTITY = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?)\s*([A-Za-z]*)\s*")


def parse_bytes(text: str) -> int:
    """Bytes meant by `16GB`, `512 MiB` or `1000`. Raises ValueError naming the accepted units."""
    number, factor = _split(text, {key: float(value) for key, value in _BYTES.items()}, "size", "16GB")
    return round(number * factor)


def parse_seconds(text: str) -> float:
    """Seconds meant by `200ms`, `1.5 s` or `2`. Raises ValueError naming the accepted units."""
    number, factor = _split(text, _SECONDS, "duration", "200ms")
    return number * factor


def format_bytes(count: float) -> str:
    """`count` bytes for people, decimal units: `1.53 GB`."""
    for unit, factor in (("TB", 10**12), ("GB", GB), ("MB", 10**6), ("kB", 10**3)):
        if abs(count) >= factor:
            return f"{count / factor:.3g} {unit}"
    return f"{count:.0f} B"


def format_seconds(seconds: float) -> str:
    """`seconds` for people: `850 µs`, `12.3 ms`, `4.2 s`, `3 min 20 s`, `2 h 05 min`."""
    if seconds < 1e-3:
        return f"{seconds * 1e6:.3g} µs"
    if seconds < 1:
        return f"{seconds * 1e3:.3g} ms"
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def _split(text: str, units: dict[str, float], noun: str, example: str) -> tuple[float, float]:
    match = _QUANTITY.fullmatch(text)
    if match is None or match[2].lower() not in units:
        names = ", ".join(unit for unit in units if unit)
        raise ValueError(f"{text!r} is not a {noun}: write a number and one of {names}, for example {example}")
    return float(match[1]), units[match[2].lower()]
