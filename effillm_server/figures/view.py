"""What a figure shows: the cells left after its fixed parameters and the user's filters, and the words for its caption."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from effillm_server.analysis.cells import Cell, Selection, cells, select
from effillm_server.analysis.facts import Facts
from effillm_server.analysis.filters import FILTERABLE, matching
from effillm_server.analysis.rows import AXES
from effillm_server.analysis.words import plural, slice_text
from effillm_server.contract.quantization import METHODS as METHOD_OPTIONS
from effillm_server.contract.quantization import bits_of, method_of
from effillm_server.errors import BadInput

Row = Mapping[str, Any]
METHODS = tuple(METHOD_OPTIONS)
# The order in which open axes are narrowed to one value: what shapes a figure least goes first.
NARROWING = (
    "engine", "runtime", "workload", "generate_tokens", "hardware", "quantization", "dtype", "sequence_length", "batch_size",
    "model", "weights",
)  # fmt: skip


@dataclass(frozen=True)
class Options:
    """How a figure is to be drawn. `filters` maps an axis to the values to keep, instead of the figure's own choice.

    `series`: the axis with a line per value, instead of the figure's own (figures with lines only).
    """

    filters: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    series: str | None = None
    theme: str = "light"
    include_invalid: bool = False
    simulated: bool | None = None
    facts: Facts = field(default_factory=Facts)
    width: int = 620
    height: int = 340
    heading: bool = True


class NotEnough(Exception):
    """The rows cannot fill this figure; the message says what it needs."""


@dataclass(frozen=True)
class View:
    """The cells of a figure, the axes all of them agree on, and where they come from."""

    cells: tuple[Cell, ...]
    fixed: dict[str, Any]
    selection: Selection
    options: Options
    chosen_among: dict[str, list[Any]]

    @property
    def facts(self) -> Facts:
        return self.options.facts

    def only(self, kept: Iterable[Cell]) -> View:
        """The same view of fewer cells."""
        members = tuple(kept)
        return View(members, self.fixed, self.selection, self.options, self.chosen_among)

    def caption(self, *extra: str) -> list[str]:
        """Lines below the title: fixed parameters, what the figure stands on, what was left out, what the bars mean."""
        results = sum(len(cell.rows) for cell in self.cells)
        suspect = sum(row["verdict"] == "suspect" for cell in self.cells for row in cell.rows)
        invalid = sum(row["verdict"] == "invalid" for cell in self.cells for row in cell.rows)
        stands_on = [plural(results, "result"), *([f"{suspect} suspect"] if suspect else [])]
        stands_on += [f"{invalid} invalid, as asked"] if invalid else []
        parts = [slice_text(self.fixed)] if slice_text(self.fixed) else []
        parts.append(", ".join(stands_on))
        if any(row["weights"] == "synthetic" for cell in self.cells for row in cell.rows):
            parts.append("synthetic weights")
        if self.selection.simulated:
            parts.append("SIMULATED, not measured")
        if self.selection.note:
            parts.append(self.selection.note)
        return wrap([" · ".join(parts), *extra])


def view(
    rows: Iterable[Row], options: Options, free: Sequence[str], preferred: Mapping[str, Any] | None = None
) -> View:
    """Cells that differ in the `free` axes only. Every other axis is narrowed to its preferred value where that was
    measured, else to the one with most cells, unless a filter says otherwise. Raises NotEnough when nothing is left.
    """
    for axis in options.filters:
        if axis not in FILTERABLE:
            raise BadInput(f"no axis {axis!r} to filter by; there are {', '.join(FILTERABLE)}", field=axis)
    selection = select(rows, include_invalid=options.include_invalid, simulated=options.simulated)
    if not selection.rows:
        raise NotEnough(f"needs valid measured rows{'; ' + selection.note if selection.note else ''}")
    kept = matching(selection.rows, options.filters)
    if not kept:
        asked = ", ".join(f"{axis} {' or '.join(map(str, values))}" for axis, values in options.filters.items())
        raise NotEnough(f"needs rows with {asked}; there are none")
    of = cells(kept)
    among: dict[str, list[Any]] = {}
    for axis in NARROWING:
        if axis not in free:
            of, others = _narrow(of, axis, (preferred or {}).get(axis))
            if others:
                among[axis] = others
    fixed = {axis: of[0].axes[axis] for axis in AXES if axis not in free}
    return View(tuple(of), fixed, selection, options, among)


def _narrow(of: list[Cell], axis: str, preferred: Any) -> tuple[list[Cell], list[Any]]:
    counts = Counter(cell.axes[axis] for cell in of)
    if len(counts) == 1:
        return of, []
    best = preferred if preferred in counts else max(counts, key=lambda value: (counts[value], -_rank(axis, value)))
    return [cell for cell in of if cell.axes[axis] == best], [value for value in counts if value != best]


def _rank(axis: str, value: Any) -> float:
    """Tie-break: small numbers and the plainest precision first."""
    if axis == "quantization":
        return precision_rank(str(value))[0]
    return float(value) if isinstance(value, int | float) else 0.0


def in_precision_order(names: Iterable[str]) -> list[str]:
    """Distinct precisions: methods as the contract lists them, plain ones first, and within a method the widest first."""
    return sorted(set(names), key=precision_rank)


def precision_rank(name: str) -> tuple[int, float, str]:
    """Where a precision's label stands among others."""
    method = method_of(name)
    place = METHODS.index(method) if method in METHODS else len(METHODS)
    return place, -(bits_of(name) or 0.0), name


def require(count: int, least: int, needs: str) -> None:
    """Raises NotEnough unless `count` reaches `least`."""
    if count < least:
        raise NotEnough(f"needs {needs}; found {count}")


def wrap(lines: Iterable[str], width: int = 122) -> list[str]:
    """`lines` broken at spaces to at most `width` characters; empty ones dropped."""
    found: list[str] = []
    for line in lines:
        current = ""
        for word in line.split():
            if current and len(current) + 1 + len(word) > width:
                found.append(current)
                current = word
            else:
                current = f"{current} {word}".strip()
        if current:
            found.append(current)
    return found
