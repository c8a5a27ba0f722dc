"""Figures with a line per series: throughput, first-token time and memory against size, batch and sequence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import altair as alt

from effillm_server.analysis.cells import label
from effillm_server.analysis.efficiency import best_batches
from effillm_server.analysis.laws import LAWS
from effillm_server.analysis.scaling import MIN_POINTS, describe, gather, predict
from effillm_server.errors import BadInput
from effillm_server.figures import parts
from effillm_server.figures.view import Options, Row, View, require, view

TITLES = {
    "model": "model", "hardware": "hardware", "quantization": "precision", "batch_size": "batch size",
    "sequence_length": "sequence length", "generate_tokens": "tokens generated", "workload": "workload", "runtime": "runtime",
    "engine": "engine",
}  # fmt: skip
X_TITLES = {
    "parameters": "model size (billion parameters)",
    "batch_size": "batch size b (sequences)",
    "sequence_length": "sequence length s (prompt tokens)",
}
CURVE_STEPS = 40
MS = 1e3
BEST_BATCH = ("T(b)/b largest", "largest b keeping 80 % of T(1)")


@dataclass(frozen=True)
class LineFigure:
    """A figure with one line per `series` of `metric` against `x`, at the paper's fixed parameters where measured."""

    number: int
    title: str
    metric: str
    y_title: str
    x: str
    series: str
    preferred: dict[str, Any] = field(default_factory=dict)
    factor: float = 1.0
    law: str | None = None
    log_y: bool = True
    log_x: bool = True

    def draw(self, rows: Sequence[Row], options: Options) -> dict[str, Any]:
        """Chart specification. Raises NotEnough below two points on every line, BadInput for a series it cannot draw."""
        if options.series not in (None, self.series):
            return self._with_series(str(options.series)).draw(rows, options)
        of, names, dropped = parts.fewer(self._view(rows, options), self.series)
        data = self._points(of)
        layers, notes = self._layers(of, names, data)
        caption = of.caption(parts.bars_mean(data, of.facts), *notes, dropped, parts.also_measured(of))
        chart = alt.layer(*layers).properties(width=options.width, height=options.height)
        return parts.finish(chart, self.number, self.title, caption, options, **parts.stands_on(of))

    def _with_series(self, series: str) -> LineFigure:
        """The same figure with a line per value of another axis."""
        allowed = [axis for axis in TITLES if axis != self.x and not (axis == "model" and self.x == "parameters")]
        if series not in allowed:
            raise BadInput(f"no lines by {series!r} in this figure; there are {', '.join(allowed)}", field="series")
        preferred = {axis: value for axis, value in self.preferred.items() if axis != series}
        return replace(self, series=series, preferred=preferred)

    def _view(self, rows: Sequence[Row], options: Options) -> View:
        free = {self.x if self.x != "parameters" else "model", self.series}
        if "model" in free:
            free |= {"weights"}
        if self.series == "quantization":
            free |= {"dtype"}
        return view(rows, options, sorted(free), self.preferred)

    def _points(self, of: View) -> list[parts.Point]:
        data = parts.points(of.cells, self.metric, self.x, self.series, self.factor, of.facts)
        lengths = [len({p["x"] for p in data if p["series"] == name}) for name in {p["series"] for p in data}]
        noun = {
            "parameters": "models of known size",
            "batch_size": "batch sizes",
            "sequence_length": "sequence lengths",
        }[self.x]
        require(max(lengths, default=0), 2, f"at least two {noun} with {self.metric} on one line")
        return data

    def _layers(self, of: View, names: list[str], data: list[parts.Point]) -> tuple[list[Any], list[str]]:
        theme = parts.theme_of(of.options)
        x = self._x_axis(data)
        y = parts.value_axis(self.y_title, data, log=self.log_y)
        tint, title = parts.color(names, theme, TITLES[self.series]), TITLES[self.series]
        base = alt.Chart(alt.Data(values=data)).encode(x=x, y=y, color=tint)
        curves = self._curves(of, names)
        fitted = {point["series"] for point in curves}
        guided = [point for point in data if point["series"] not in fitted]
        layers: list[Any] = []
        if guided:
            line = alt.Chart(alt.Data(values=guided)).mark_line(strokeWidth=1.5, opacity=0.75)
            layers.append(line.encode(x=x, y=y, color=tint))
        if curves:
            curve = alt.Chart(alt.Data(values=curves)).mark_line(
                strokeWidth=1.2, opacity=0.7, strokeDash=[4, 3], clip=True
            )
            layers.append(curve.encode(x=x, y=y, color=tint))
        layers += parts.error_bars(data, x, y, tint)
        tooltip = [alt.Tooltip(f"{name}:N") for name in ("series", "model", "jobs")] + [
            alt.Tooltip(f"{name}:Q", format=".4g") for name in ("x", "y", "low", "high")
        ]
        dots = base.mark_point(filled=True, size=62, opacity=1)
        layers.append(dots.encode(shape=parts.shape(names, title), tooltip=tooltip))
        return layers, self._line_notes(bool(curves), bool(guided))

    def _x_axis(self, data: list[parts.Point]) -> alt.X:
        title = X_TITLES[self.x]
        if not self.log_x:
            axis = alt.Axis(tickCount=8, labelOverlap=True)
            return alt.X("x:Q", title=title, scale=alt.Scale(zero=True, nice=True), axis=axis)
        return parts.log_axis(
            "x", f"{title[:-1]}, log scale)", [p["x"] for p in data], base=10 if self.x == "parameters" else 2
        )

    def _line_notes(self, has_curves: bool, has_guides: bool) -> list[str]:
        notes = []
        if has_curves and self.law is not None:
            notes.append(f"dashed curves: fitted {LAWS[self.law].formula}, drawn over the measured range only")
        if has_guides:
            why = f" (a fit needs {MIN_POINTS} points)" if self.law is not None else ""
            notes.append(f"lines between points guide the eye{why}")
        return ["; ".join(notes)]

    def _curves(self, of: View, names: list[str]) -> list[dict[str, Any]]:
        """The fitted law of each series with enough points, over its measured range."""
        found: list[dict[str, Any]] = []
        for name in names if self.law is not None else ():
            law = LAWS[str(self.law)]
            gathered = gather(law, [c for c in of.cells if parts.series_value(c, self.series) == name], of.facts)
            if gathered is None or gathered.x.size < MIN_POINTS:
                continue
            fit = describe(law, gathered)
            low, high = fit["range"]
            for step in range(CURVE_STEPS + 1):
                share = step / CURVE_STEPS
                at = low * (high / low) ** share if self.log_x else low + (high - low) * share
                value = predict(fit, at)["y"] * self.factor
                if value > 0:
                    found.append({"series": name, "x": at, "y": value})
        return found


@dataclass(frozen=True)
class PerInstance(LineFigure):
    """Throughput per sequence against batch size, with both kinds of best batch marked."""

    def _layers(self, of: View, names: list[str], data: list[parts.Point]) -> tuple[list[Any], list[str]]:
        layers, notes = super()._layers(of, names, data)
        marks = []
        for entry in best_batches(of.cells, of.facts):
            for kind, batch in zip(BEST_BATCH, (entry["argmax"], entry["largest_keeping_80"]), strict=True):
                marks += [{**p, "mark": kind} for p in data if p["model"] == label(entry["model"]) and p["x"] == batch]
        if marks:
            dashes = alt.Scale(domain=list(BEST_BATCH), range=[[1, 0], [3, 2]])
            rings = alt.Chart(alt.Data(values=marks)).mark_point(
                size=190, filled=False, color=parts.theme_of(of.options).ink, strokeWidth=1.6, shape="circle"
            )
            axes = layers[0].encoding
            layers.append(
                rings.encode(x=axes.x, y=axes.y, strokeDash=alt.StrokeDash("mark:N", legend=None, scale=dashes))
            )
        return layers, [*notes, "ring: T(b)/b is largest; dashed ring: the largest b that keeps 80 % of T(1)"]


THROUGHPUT, FIRST_TOKEN = "throughput T (tokens/s, log scale)", "time to first token (ms, log scale)"
FIGURES: dict[str, LineFigure] = {
    "throughput-vs-size": LineFigure(2, "Throughput against model size", "throughput_tok_s", THROUGHPUT, "parameters", "hardware",
        {"batch_size": 1, "sequence_length": 128}, law="throughput-vs-size"),
    "throughput-vs-batch": LineFigure(3, "Throughput against batch size", "throughput_tok_s", THROUGHPUT, "batch_size", "model",
        {"sequence_length": 128}, law="throughput-vs-batch"),
    "throughput-vs-sequence": LineFigure(4, "Throughput against sequence length", "throughput_tok_s", THROUGHPUT,
        "sequence_length", "model", {"batch_size": 4}, law="throughput-vs-sequence"),
    "ttft-vs-size": LineFigure(6, "Time to first token against model size", "ttft_s", FIRST_TOKEN, "parameters", "hardware",
        {"batch_size": 1, "sequence_length": 128}, MS, law="ttft-vs-size"),
    "ttft-vs-batch": LineFigure(7, "Time to first token against batch size", "ttft_s", FIRST_TOKEN, "batch_size", "model",
        {"sequence_length": 128}, MS, law="ttft-vs-batch"),
    "ttft-vs-sequence": LineFigure(8, "Time to first token against sequence length", "ttft_s", FIRST_TOKEN, "sequence_length",
        "model", {"batch_size": 1}, MS, law="ttft-vs-sequence"),
    "memory-vs-size": LineFigure(10, "Memory against model size", "memory_gb", "peak memory during inference (GB)", "parameters",
        "quantization", {"batch_size": 1, "sequence_length": 128}, law="memory-vs-size", log_y=False, log_x=False),
    "per-instance-throughput": PerInstance(15, "Per-instance throughput against batch size", "per_instance_tok_s",
        "throughput per sequence T/b (tokens/s, log scale)", "batch_size", "model", {"sequence_length": 256}),
}  # fmt: skip
