"""The matrix of a sweep as a table: model and quantization down, batch and sequence across, a colour per cell. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from effillm_server.contract.sweep import SYNTHETIC_WORKLOAD, SweepDefinition
from effillm_server.ledger.read_grid import GridCell, GridSlice
from effillm_server.web import words

# Cells on one page: more would neither be read nor fit the size of a page.
MOST_CELLS = 1000
MOST_COLUMNS = 200
STEPS = 6
SHORT_REASONS = {
    "context_window": "window", "unsupported": "no", "implied": "implied", "out_of_device_memory": "memory",
    "out_of_host_memory": "memory", "time_limit": "time",
}  # fmt: skip
SHORT_STATES = {"pending": "·", "leased": "now", "failed": "failed", "cancelled": "cancelled"}
MARKS = {"suspect": "?", "invalid": "!"}


@dataclass(frozen=True)
class Metric:
    """What a grid is coloured by."""

    title: str
    column: str
    unit: str
    factor: float = 1.0


METRICS: dict[str, Metric] = {
    "throughput": Metric("throughput", "throughput_tok_s", "tokens/s"),
    "ttft": Metric("time to first token", "ttft_s", "ms", 1e3),
    "e2e": Metric("whole generation", "e2e_s", "s"),
    "memory": Metric("peak memory", "memory_bytes", "GB", 1e-9),
}
BY_STATE = "state"


def caption(colour: str) -> str:
    """What the numbers of a grid are, with their unit."""
    metric = METRICS.get(colour, METRICS["throughput"])
    named = f"{metric.title}, {metric.unit}"
    return named if colour in METRICS else f"state; numbers are {named}"


@dataclass(frozen=True)
class Choice:
    """Which rectangle of the matrix is shown, and by what it is coloured."""

    slice: GridSlice
    colour: str
    options: dict[str, list[str]]
    models_at: int
    models_after: int | None
    models_before: int | None
    columns_at: int
    columns_after: int | None
    columns_before: int | None


@dataclass(frozen=True)
class Square:
    """One cell of the table; `css` says its state, colour step and verdict."""

    id: int
    css: str
    text: str
    title: str


@dataclass(frozen=True)
class Line:
    """One row of the table: a square per column, None where the sweep has no such cell."""

    model: str
    weights: str
    quantization: str
    squares: list[Square | None]
    first_of_model: int


@dataclass(frozen=True)
class Grid:
    """The table: its columns as (batch, sequence), the batch groups with their width, the rows, the colour scale."""

    columns: list[tuple[int, int | None]]
    batches: list[tuple[int, int]]
    lines: list[Line]
    legend: list[tuple[str, str]]
    states: list[str]
    simulated: bool


def choose(definition: SweepDefinition, asked: dict[str, str]) -> Choice:
    """The rectangle that is asked for; what is not, or does not exist, is the first of its axis."""
    options = {
        "hardware": [str(v) for v in definition.hardware],
        "workload": [str(v) for v in definition.workload],
        "generate_tokens": [str(v) for v in definition.generate_tokens],
        "engine": [str(v) for v in definition.engine],
        "runtime": [str(v) for v in definition.runtime],
        "repeat": [str(v) for v in range(1, definition.measurement.repeats + 1)],
    }
    chosen = {axis: asked[axis] if asked.get(axis) in values else values[0] for axis, values in options.items()}
    shapes = sorted(definition.sequence_length) if chosen["workload"] == SYNTHETIC_WORKLOAD else []
    batches = sorted(definition.batch_size)
    per_batch = max(1, len(shapes))
    batches_at_once = max(1, MOST_COLUMNS // per_batch)
    columns_at = _at(asked.get("columns"), len(batches))
    shown = batches[columns_at : columns_at + batches_at_once]
    models = list(dict.fromkeys(choice.id for choice in definition.models))
    rows_per_model = max(1, len(definition.quantization) * len(definition.models) // len(models))
    models_at_once = max(1, MOST_CELLS // (len(shown) * per_batch * rows_per_model))
    models_at = _at(asked.get("models"), len(models))
    colour = asked.get("colour", "throughput")
    return Choice(
        GridSlice(
            chosen["hardware"], chosen["engine"], chosen["runtime"], chosen["workload"], int(chosen["generate_tokens"]),
            int(chosen["repeat"]), models[models_at : models_at + models_at_once], shown, shapes,
        ),
        colour if colour in METRICS else BY_STATE,
        {axis: values for axis, values in options.items() if len(values) > 1},
        models_at, _after(models_at, models_at_once, len(models)), _before(models_at, models_at_once),
        columns_at, _after(columns_at, batches_at_once, len(batches)), _before(columns_at, batches_at_once),
    )  # fmt: skip


def grid(cells: Sequence[GridCell], of: GridSlice, colour: str) -> Grid:
    """The table of these cells."""
    shapes: Sequence[int | None] = of.sequence_lengths or [None]
    columns = [(batch, sequence) for batch in of.batch_sizes for sequence in shapes]
    place = {column: index for index, column in enumerate(columns)}
    scale = Scale.of([found for cell in cells if (found := value(cell, colour)) is not None])
    rows: dict[tuple[str, str, str], list[Square | None]] = {}
    for cell in cells:
        key = (cell.model, cell.weights, cell.quantization)
        index = place.get((cell.batch_size, cell.sequence_length))
        if index is not None:
            rows.setdefault(key, [None] * len(columns))[index] = square(cell, colour, scale)
    return Grid(
        columns,
        [(batch, len(shapes)) for batch in of.batch_sizes],
        _lines(rows),
        [] if colour == BY_STATE else scale.legend(METRICS[colour]),
        sorted({_kind(cell) for cell in cells}, key=KINDS.index),
        any(cell.simulated for cell in cells),
    )


@dataclass(frozen=True)
class Scale:
    """Values to six steps, each the same ratio wide: what is measured here spans orders of magnitude."""

    low: float
    high: float
    has_any: bool

    @classmethod
    def of(cls, values: Sequence[float]) -> Scale:
        kept = [v for v in values if v > 0]
        return cls(min(kept, default=1.0), max(kept, default=1.0), bool(kept))

    def step(self, of: float) -> int:
        if of <= self.low or self.high <= self.low:
            return 0
        return min(STEPS - 1, int(STEPS * math.log(of / self.low) / math.log(self.high / self.low)))

    def legend(self, metric: Metric) -> list[tuple[str, str]]:
        """Colour step and what it stands for; one entry where all values are the same."""
        if not self.has_any:
            return []
        if self.high <= self.low:
            return [("q0", f"{words.number(self.low * metric.factor)} {metric.unit}")]
        edges = [self.low * (self.high / self.low) ** (k / STEPS) * metric.factor for k in range(STEPS + 1)]
        return [
            (f"q{k}", f"{words.number(edges[k])} to {words.number(edges[k + 1])} {metric.unit}") for k in range(STEPS)
        ]


KINDS = ["measured", "suspect", "invalid", "infeasible", "implied", "failed", "cancelled", "leased", "pending"]


def value(cell: GridCell, colour: str) -> float | None:
    """The number a cell is coloured by; None without one."""
    if colour == BY_STATE or cell.state != "measured":
        return None
    found: float | None = getattr(cell, METRICS[colour].column)
    return found


def square(cell: GridCell, colour: str, scale: Scale) -> Square:
    """The cell as it is drawn, with all of it in words in its title."""
    classes = [_css(cell)]
    found = value(cell, colour)
    if cell.state == "measured":
        metric = METRICS.get(colour, METRICS["throughput"])
        own = getattr(cell, metric.column)
        text = "done" if own is None else words.number(own * metric.factor)
        text += MARKS.get(cell.verdict or "", "")
        if found is not None:
            classes.append(f"q{scale.step(found)}")
        if cell.verdict in MARKS:
            classes.append(cell.verdict or "")
    elif cell.state == "infeasible":
        text = SHORT_REASONS.get(cell.reason or "", "no")
    else:
        text = SHORT_STATES[cell.state]
    return Square(cell.id, " ".join(classes), text, _title(cell))


def _title(cell: GridCell) -> str:
    shape = f"b = {cell.batch_size}" + (f", s = {cell.sequence_length}" if cell.sequence_length else "")
    if cell.state == "measured":
        said = f"{words.number(cell.throughput_tok_s)} tokens/s, first token {words.seconds(cell.ttft_s)}"
        return f"{shape}: {said}, {words.size(cell.memory_bytes)}, {cell.verdict}"
    why = f", {words.reason(cell.reason)}" if cell.reason else ""
    return f"{shape}: {words.state(cell.state)}{why}"


def _kind(cell: GridCell) -> str:
    if cell.state == "infeasible":
        return _css(cell)
    return cell.verdict if cell.state == "measured" and cell.verdict in MARKS else str(cell.state)


def _css(cell: GridCell) -> str:
    return "implied" if cell.state == "infeasible" and cell.reason == "implied" else str(cell.state)


def _lines(rows: dict[tuple[str, str, str], list[Square | None]]) -> list[Line]:
    found: list[Line] = []
    of_model: dict[tuple[str, str], int] = {}
    for model, weights, _ in rows:
        of_model[model, weights] = of_model.get((model, weights), 0) + 1
    ordered = sorted(rows, key=lambda key: list(of_model).index(key[:2]))
    for model, weights, quantization in ordered:
        height = of_model.pop((model, weights), 0)
        found.append(Line(model, weights, quantization, rows[model, weights, quantization], height))
    return found


def _at(text: str | None, length: int) -> int:
    return min(int(text), length - 1) if text and text.isascii() and text.isdigit() and len(text) < 7 else 0


def _after(at: int, step: int, length: int) -> int | None:
    return at + step if at + step < length else None


def _before(at: int, step: int) -> int | None:
    return max(0, at - step) if at else None
