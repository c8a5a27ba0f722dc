"""The largest batch and sequence that run, for each model, quantization and device, and what stopped the next one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

Row = Mapping[str, Any]
GROUP = ("model", "weights", "quantization", "engine", "runtime", "hardware", "workload", "generate_tokens")
RAN = "measured"


def frontier(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """One entry per group: largest batch by sequence length, largest sequence by batch, and the limit.

    `limited_by` names the reason of the smallest cell that did not run; None means the sweep asked for nothing larger.
    Simulated and measured rows are kept apart.
    """
    groups: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in rows:
        if row["state"] in (RAN, "infeasible"):
            groups[(bool(row["simulated"]), *(row[name] for name in GROUP))].append(row)
    return [_entry(key, members) for key, members in groups.items()]


def _entry(key: tuple[Any, ...], rows: list[Row]) -> dict[str, Any]:
    ran = [row for row in rows if row["state"] == RAN]
    refused = sorted((row for row in rows if row["state"] != RAN), key=_size)
    return {
        "simulated": key[0],
        **dict(zip(GROUP, key[1:], strict=True)),
        "largest_batch": _largest(ran, refused, "sequence_length", "batch_size"),
        "largest_sequence": _largest(ran, refused, "batch_size", "sequence_length"),
        "ran": len(ran),
        "infeasible": len(refused),
        "limited_by": refused[0]["reason"] if refused else None,
        "jobs": [row["job"] for row in ran],
    }


def _largest(ran: list[Row], refused: list[Row], by: str, of: str) -> list[dict[str, Any]]:
    """For each value of `by`: the largest `of` that ran and the reason of the next that did not."""
    found = []
    for value in sorted({row[by] for row in (*ran, *refused)}, key=lambda v: (v is None, v)):
        best = max((row[of] for row in ran if row[by] == value and row[of] is not None), default=None)
        beyond = [
            row for row in refused if row[by] == value and row[of] is not None and (best is None or row[of] > best)
        ]
        first = min(beyond, key=lambda row: int(row[of]), default=None)
        found.append(
            {
                by: value,
                of: best,
                "next_refused": first[of] if first else None,
                "reason": first["reason"] if first else None,
            }
        )
    return found


def _size(row: Row) -> tuple[int, int]:
    return int(row["batch_size"]) * int(row["sequence_length"] or 0), int(row["batch_size"])
