"""Two sets of rows, cell by cell: which is faster, by how much, and is that more than noise."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from effillm_server.analysis.cells import LOWER_IS_BETTER, Cell, cells, select
from effillm_server.analysis.comparability import comparability
from effillm_server.analysis.differences import Difference, difference, holm
from effillm_server.analysis.facts import Facts
from effillm_server.analysis.rows import AXES, METRICS
from effillm_server.errors import BadInput

Row = Mapping[str, Any]
ALPHA = 0.05
COMPARABLE_METRICS = (*METRICS, "memory_bytes", "load_s", "energy_per_token_j")
MEMORY_WORDS = {"faster": "smaller", "slower": "larger"}


@dataclass(frozen=True)
class Options:
    """`margin`: differences within this share count as the same. `across`: axes that differ on purpose; None finds them."""

    metric: str = "throughput_tok_s"
    margin: float = 0.03
    across: tuple[str, ...] | None = None
    include_invalid: bool = False
    facts: Facts = field(default_factory=Facts)


def compare(rows_a: Iterable[Row], rows_b: Iterable[Row], options: Options | None = None) -> dict[str, Any]:
    """B against A for every cell both have: ratio with interval, test, verdict faster | slower | same | unsure.

    `same` needs evidence: the interval test of equivalence within the margin. p-values are Holm-adjusted over the cells.
    Raises BadInput where there is nothing to compare.
    """
    chosen = options or Options()
    _check_options(chosen)
    a_rows, b_rows = _selected(rows_a, rows_b, chosen)
    across = _across(a_rows, b_rows) if chosen.across is None else chosen.across
    pairs, only_a, only_b = _pairs(cells(a_rows), cells(b_rows), across)
    if not pairs:
        raise BadInput(_no_common_cell(a_rows, b_rows, across))
    found = [(key, a, b, difference(a, b, chosen.metric, chosen.margin, chosen.facts)) for key, a, b in pairs]
    usable = [(key, a, b, d) for key, a, b, d in found if d is not None]
    if not usable:
        raise BadInput(f"no common cell has {chosen.metric} on both sides; choose another metric", field="metric")
    different = holm([d.p_different for _, _, _, d in usable])
    equivalent = holm([d.p_equivalent for _, _, _, d in usable])
    entries = [
        _entry(key, a, b, d, p, q, chosen, len(usable))
        for (key, a, b, d), p, q in zip(usable, different, equivalent, strict=True)
    ]
    return {
        "metric": chosen.metric,
        "margin": chosen.margin,
        "alpha": ALPHA,
        "across": {axis: [_values(a_rows, axis), _values(b_rows, axis)] for axis in across},
        "held_equal": [axis for axis in AXES if axis not in across],
        "cells": entries,
        "counts": {v: sum(e["verdict"] == v for e in entries) for v in _words(chosen.metric)},
        "geometric_mean_ratio": math.exp(sum(d.shift for _, _, _, d in usable) / len(usable)),
        "only_in_a": len(only_a),
        "only_in_b": len(only_b),
        "without_metric": len(found) - len(usable),
        "comparability": comparability(a_rows, b_rows, across),
        "remarks": _remarks(usable, chosen),
    }


def fails(result: Mapping[str, Any], condition: str) -> list[dict[str, Any]]:
    """Cells of a comparison that meet `slower:3%`: verdict slower and, by its best estimate, by more than 3 %.

    Raises BadInput for a condition it cannot read.
    """
    match = re.fullmatch(r"(slower|faster|larger|smaller):([0-9]+(?:\.[0-9]+)?)%", condition.replace(" ", ""))
    if match is None:
        raise BadInput(f"{condition!r} is not a condition: write slower:3% or faster:10%", field="fail_if")
    verdict, share = match[1], float(match[2]) / 100
    return [c for c in result["cells"] if c["verdict"] == verdict and abs(c["change"]) > share]


def _check_options(options: Options) -> None:
    if options.metric not in COMPARABLE_METRICS:
        raise BadInput(f"no metric {options.metric!r}; there are {', '.join(COMPARABLE_METRICS)}", field="metric")
    if not 0 < options.margin < 1:
        raise BadInput(f"margin {options.margin:g} is not a share between 0 and 1; 0.03 means 3 %", field="margin")
    for axis in options.across or ():
        if axis not in AXES:
            raise BadInput(f"no axis {axis!r}; there are {', '.join(AXES)}", field="across")


def _selected(
    rows_a: Iterable[Row], rows_b: Iterable[Row], options: Options
) -> tuple[tuple[Row, ...], tuple[Row, ...]]:
    first = select(rows_a, include_invalid=options.include_invalid)
    second = select(rows_b, include_invalid=options.include_invalid)
    for name, selection in (("A", first), ("B", second)):
        if not selection.rows:
            raise BadInput(
                f"{name} has no valid measured row to compare{'; ' + selection.note if selection.note else ''}"
            )
    if first.simulated != second.simulated:
        raise BadInput("one side is simulated and the other measured: declared times are not compared with real ones")
    if {row["job"] for row in first.rows} == {row["job"] for row in second.rows}:
        raise BadInput(f"A and B are the same {len(first.rows)} results: compare two sweeps, or two filters of one")
    return first.rows, second.rows


def _across(a: tuple[Row, ...], b: tuple[Row, ...]) -> tuple[str, ...]:
    """Axes on which each side has one value and the two differ; the dtype goes with its quantization."""
    found = [
        axis for axis in AXES if len(_values(a, axis)) == len(_values(b, axis)) == 1 and _values(a, axis) != _values(b, axis)
    ]  # fmt: skip
    if "quantization" in found and "dtype" not in found:
        found.append("dtype")
    return tuple(found)


def _values(rows: tuple[Row, ...], axis: str) -> list[Any]:
    return sorted({row[axis] for row in rows}, key=lambda value: (value is None, value))


def _pairs(
    a: list[Cell], b: list[Cell], across: tuple[str, ...]
) -> tuple[list[tuple[dict[str, Any], Cell, Cell]], list[Cell], list[Cell]]:
    held = [axis for axis in AXES if axis not in across]
    of_a, of_b = (_by_key(side, held, name) for side, name in ((a, "A"), (b, "B")))
    pairs = [(dict(zip(held, key, strict=True)), cell, of_b[key]) for key, cell in of_a.items() if key in of_b]
    only_a = [cell for key, cell in of_a.items() if key not in of_b]
    return pairs, only_a, [cell for key, cell in of_b.items() if key not in of_a]


def _by_key(side: list[Cell], held: list[str], name: str) -> dict[tuple[Any, ...], Cell]:
    found: dict[tuple[Any, ...], Cell] = {}
    for cell in side:
        key = tuple(cell.axes[axis] for axis in held)
        if key in found:
            raise BadInput(
                f"{name} has several cells that differ only in an axis compared across: filter it to one value"
            )
        found[key] = cell
    return found


def _no_common_cell(a: tuple[Row, ...], b: tuple[Row, ...], across: tuple[str, ...]) -> str:
    apart = [axis for axis in AXES if axis not in across and not set(_values(a, axis)) & set(_values(b, axis))]
    why = f"they share no value of {', '.join(apart)}" if apart else "no combination of axes is in both"
    return f"A and B have no cell in common: {why}. Name the axes that differ on purpose with `across`"


def _entry(
    key: dict[str, Any], a: Cell, b: Cell, d: Difference, p: float, q: float, options: Options, family: int
) -> dict[str, Any]:
    of_a, of_b = a.estimate(options.metric), b.estimate(options.metric)
    return {
        **key,
        "a": of_a and of_a.value,
        "b": of_b and of_b.value,
        "ratio": math.exp(d.shift),
        "ratio_low": math.exp(d.low),
        "ratio_high": math.exp(d.high),
        "change": math.expm1(d.shift),
        "test": d.test,
        "p": p,
        "p_equivalent": q,
        "effect_size": d.effect_size,
        "minimum_detectable_change": d.minimum_detectable(ALPHA / family),
        "processes": [len(a.rows), len(b.rows)],
        "verdict": _verdict(d, p, q, options.metric),
        "jobs_a": a.jobs,
        "jobs_b": b.jobs,
    }


def _verdict(d: Difference, p: float, q: float, metric: str) -> str:
    """Equivalence goes first: a difference can be certain and still lie within the margin."""
    faster, slower, same, unsure = _words(metric)
    if q < ALPHA:
        return same
    if p < ALPHA:
        return faster if (d.shift > 0) != (metric in LOWER_IS_BETTER) else slower
    return unsure


def _words(metric: str) -> tuple[str, str, str, str]:
    words = MEMORY_WORDS if metric in ("memory_bytes", "energy_per_token_j") else {}
    return words.get("faster", "faster"), words.get("slower", "slower"), "same", "unsure"


def _remarks(usable: list[tuple[dict[str, Any], Cell, Cell, Difference]], options: Options) -> list[str]:
    remarks = [f"p-values are Holm-adjusted over {len(usable)} cells; the intervals are not"]
    single = sum(min(len(a.rows), len(b.rows)) == 1 for _, a, b, _ in usable)
    if single:
        remarks.append(
            f"{single} of {len(usable)} cells have a single process on a side: nothing inside the machine's noise floor "
            f"({options.facts.noise_floor:.1%} sd of A/A ratios, {options.facts.noise_floor_source}) is called a difference; "
            "`measurement: {repeats: 5}` measures in fresh processes"
        )
    return remarks
