"""Were two sets of rows taken under the same conditions? What differs between their fingerprints, and does it matter."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

Row = Mapping[str, Any]
# Differences here change speed or memory; anything else (a host name, Ray's version) is mentioned and nothing more.
DECISIVE = (
    "hardware.processor", "hardware.gpu", "hardware.memory_bytes", "hardware.hardware_class", "software.threads",
    "software.blas", "software.kernel", "software.python", "software.versions.torch", "software.versions.transformers",
    "software.versions.bitsandbytes", "software.versions.gptqmodel", "software.versions.auto-gptq", "software.code_version",
)  # fmt: skip
# What follows from an axis that is compared on purpose.
EXPLAINED_BY = {"hardware": ("hardware.", "software.kernel", "software.threads"), "runtime": ("software.",)}
# One GPU of a kind is as good as another of the same kind.
IDENTITY = ("hardware.gpu.uuid",)


def comparability(a: Iterable[Row], b: Iterable[Row], across: Iterable[str] = ()) -> dict[str, Any]:
    """`comparable` with the decisive differences, the others, and a sentence. Unknown fingerprints are said to be unknown."""
    rows_a, rows_b = list(a), list(b)
    digests_a, digests_b = ({row.get("fingerprint") for row in rows} for rows in (rows_a, rows_b))
    if None in digests_a | digests_b:
        return _said(None, {}, {}, "some rows carry no fingerprint: what they ran on cannot be compared")
    if digests_a == digests_b and len(digests_a) == 1:
        return _said(True, {}, {}, "all rows carry the same fingerprint")
    details_a, details_b = (_details(rows) for rows in (rows_a, rows_b))
    if not details_a or not details_b:
        return _said(None, {}, {}, "the fingerprints differ, and their contents were not given")
    explained = tuple(prefix for axis in across for prefix in EXPLAINED_BY.get(axis, ()))
    differing = {
        path: [sorted(map(str, details_a.get(path, {None}))), sorted(map(str, details_b.get(path, {None})))]
        for path in sorted(details_a.keys() | details_b.keys())
        if details_a.get(path, {None}) != details_b.get(path, {None})
        and not path.startswith(explained or ("\0",))
        and path not in IDENTITY
    }
    decisive = {path: values for path, values in differing.items() if path.startswith(DECISIVE)}
    minor = {path: values for path, values in differing.items() if path not in decisive}
    if decisive:
        return _said(False, decisive, minor, f"not comparable as they stand: {', '.join(decisive)} differ")
    return _said(True, decisive, minor, "nothing differs that is known to change speed or memory")


def _said(comparable: bool | None, decisive: dict[str, Any], minor: dict[str, Any], why: str) -> dict[str, Any]:
    return {"comparable": comparable, "decisive": decisive, "minor": minor, "why": why}


def _details(rows: list[Row]) -> dict[str, set[str]]:
    """Every leaf of the rows' fingerprints by dotted path, with the values it takes."""
    found: dict[str, set[str]] = {}
    seen: set[Any] = set()
    for row in rows:
        detail = row.get("fingerprint_detail")
        if detail is None or row.get("fingerprint") in seen:
            continue
        seen.add(row.get("fingerprint"))
        for path, value in _leaves(detail, ""):
            found.setdefault(path, set()).add(value)
    return found


def _leaves(value: Any, path: str) -> Iterable[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}" if path else str(key))
    else:
        yield path, repr(value)
