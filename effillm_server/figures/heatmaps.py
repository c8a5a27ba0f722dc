"""Heatmaps of one model over batch size and sequence length, with what did not run and where latency jumps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt

from effillm_server.analysis.cliffs import cliffs
from effillm_server.analysis.rows import AXES
from effillm_server.analysis.words import number
from effillm_server.figures import parts
from effillm_server.figures.view import Options, Row, View, require, view

GRID = ("batch_size", "sequence_length")
REASONS = {
    "context_window": "beyond the context window", "unsupported": "unsupported", "implied": "out of memory (implied)",
    "out_of_device_memory": "out of memory", "out_of_host_memory": "out of memory", "time_limit": "over the time limit",
}  # fmt: skip


@dataclass(frozen=True)
class Heatmap:
    """`metric` over b × s for one model."""

    number: int
    title: str
    metric: str
    unit: str
    factor: float = 1.0
    marks_cliffs: bool = False

    def draw(self, rows: Sequence[Row], options: Options) -> dict[str, Any]:
        """Chart specification. Raises NotEnough below a 2 × 2 grid."""
        everything = list(rows)
        of = view(everything, options, GRID)
        data = [_square(p) for p in parts.points(of.cells, self.metric, "batch_size", "model", self.factor)]
        lengths = {id(cell): cell.axes["sequence_length"] for cell in of.cells}
        placed = [cell for cell in of.cells if cell.estimate(self.metric) is not None]
        data = [
            {**square, "s": lengths[id(cell)]} for square, cell in zip(data, placed, strict=True) if lengths[id(cell)]
        ]
        least = min(len({square[axis] for square in data}) for axis in ("b", "s"))
        require(least, 2, "at least two batch sizes and two sequence lengths of one model")
        jumps = self._jumps(of)
        refused = _refused(everything, of)
        chart = self._chart(of, data, refused, jumps)
        notes = [
            f"numbers: mean in {self.unit} and half-width of its 95 % interval; {parts.bars_mean(data, of.facts)[6:]}"
        ]
        if self.marks_cliffs:
            found = f"{len(jumps)} marked with a frame" if jumps else "none found"
            notes.append(f"latency cliffs (steps beyond growth and noise): {found}")
        caption = of.caption(*notes, "crossed: did not run" if refused else "", parts.also_measured(of))
        meta = parts.stands_on(of) | {"cliffs": jumps}
        return parts.finish(chart, self.number, f"{self.title}, {of.cells[0].model_label}", caption, options, **meta)

    def _jumps(self, of: View) -> list[dict[str, Any]]:
        found = []
        for cliff in cliffs(of.cells, of.facts, self.metric) if self.marks_cliffs else ():
            at = {
                "batch_size": cliff.get("batch_size"),
                "sequence_length": cliff.get("sequence_length"),
                cliff["axis"]: cliff["to"],
            }
            found.append(
                {"b": at["batch_size"], "s": at["sequence_length"], "rise": cliff["rise"], "excess": cliff["excess"]}
            )
        return found

    def _chart(self, of: View, data: list[Any], refused: list[Any], jumps: list[Any]) -> Any:
        theme = parts.theme_of(of.options)
        x, y = _axes(data, refused)
        low, high = min(p["y"] for p in data), max(p["y"] for p in data)
        scale = alt.Scale(type="log", range=list(theme.ramp), domain=[low, high if high > low else low * 2])
        base = alt.Chart(alt.Data(values=_with_ink(data, low, high, theme.on_ramp))).encode(x=x, y=y)
        squares = base.mark_rect(stroke=theme.background, strokeWidth=2).encode(
            color=alt.Color("y:Q", title=self.unit, scale=scale, legend=alt.Legend(format="~s", tickCount=4)),
            tooltip=[alt.Tooltip("b:O"), alt.Tooltip("s:O"), alt.Tooltip("y:Q", format=".4g"), alt.Tooltip("jobs:N")],
        )
        texts = base.mark_text(lineHeight=14, dy=-5).encode(text="text:N", color=alt.Color("ink:N", scale=None))
        layers = [squares, texts]
        if refused:
            off = alt.Chart(alt.Data(values=refused)).encode(x=x, y=y)
            layers.append(off.mark_rect(fill=theme.grid, stroke=theme.background, strokeWidth=2))
            layers.append(off.mark_text(color=theme.muted, lineHeight=13, fontSize=10, dy=-11).encode(text="text:N"))
        if jumps:
            frame = alt.Chart(alt.Data(values=jumps)).mark_rect(fillOpacity=0, stroke=theme.ink, strokeWidth=3.5)
            layers.append(frame.encode(x=x, y=y))
        columns = len({p["b"] for p in (*data, *refused)})
        rows = len({p["s"] for p in (*data, *refused)})
        return (
            alt.layer(*layers)
            .resolve_scale(color="independent")
            .properties(width=max(84 * columns, 300), height=max(52 * rows, 160))
        )


def _square(point: parts.Point) -> dict[str, Any]:
    half = None if point["low"] is None or point["high"] is None else (point["high"] - point["low"]) / 2
    text = [number(point["y"])] + ([f"± {number(half, 2)}"] if half is not None else [])
    return {**point, "b": point["x"], "text": text}


def _with_ink(data: list[dict[str, Any]], low: float, high: float, inks: tuple[str, str]) -> list[dict[str, Any]]:
    """Dark text on the pale half of the ramp, pale text on the dark half; the ramp is logarithmic."""
    middle = (low * high) ** 0.5 if low > 0 else (low + high) / 2
    return [{**square, "ink": inks[0] if square["y"] < middle or high == low else inks[1]} for square in data]


def _axes(data: list[Any], refused: list[Any]) -> tuple[alt.X, alt.Y]:
    batches = sorted({p["b"] for p in (*data, *refused)})
    lengths = sorted({p["s"] for p in (*data, *refused)}, reverse=True)
    plain = alt.Axis(labelAngle=0, grid=False, domain=False, ticks=False)
    return (
        alt.X("b:O", title="batch size b (sequences)", sort=batches, axis=plain),
        alt.Y("s:O", title="sequence length s (prompt tokens)", sort=lengths, axis=plain),
    )


def _refused(rows: Sequence[Row], of: View) -> list[dict[str, Any]]:
    """Cells of this view's slice that could not run, and why."""
    held = [axis for axis in AXES if axis not in GRID]
    ran = {(cell.axes["batch_size"], cell.axes["sequence_length"]) for cell in of.cells}
    found = {}
    for row in rows:
        place = (row["batch_size"], row["sequence_length"])
        same = all(row[axis] == of.fixed[axis] for axis in held) and bool(row["simulated"]) == of.selection.simulated
        if row["state"] == "infeasible" and same and place not in ran and place[1] is not None:
            words = REASONS.get(str(row["reason"]), str(row["reason"])).split(" ")
            middle = (len(words) + 1) // 2
            text = ["×", " ".join(words[:middle]), " ".join(words[middle:])]
            found[place] = {"b": place[0], "s": place[1], "text": [line for line in text if line]}
    return list(found.values())


FIGURES: dict[str, Heatmap] = {
    "throughput-heatmap": Heatmap(5, "Throughput over batch size and sequence length", "throughput_tok_s", "tokens/s"),
    "ttft-heatmap": Heatmap(
        9, "Time to first token over batch size and sequence length", "ttft_s", "ms", 1e3, marks_cliffs=True
    ),
}
