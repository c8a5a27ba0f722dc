"""Pieces that figures are made of: points with error bars, scales, captions, the message instead of an empty frame."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import altair as alt

from effillm_server.analysis.cells import Cell, label
from effillm_server.analysis.facts import Facts
from effillm_server.analysis.statistics import STOPPED_COVERAGE
from effillm_server.figures.theme import MAX_SERIES, SHAPES, THEMES, Theme, config
from effillm_server.figures.view import Options, View, in_precision_order, wrap

MOST_LISTED = 4
AXIS_WORDS = {
    "model": ("", "models"), "hardware": ("", "devices"), "quantization": ("", "precisions"), "batch_size": ("b =", "batch sizes"),
    "sequence_length": ("s =", "sequence lengths"), "generate_tokens": ("n =", "lengths generated"),
    "workload": ("workload", "workloads"), "engine": ("engine", "engines"), "runtime": ("runtime", "runtimes"),
}  # fmt: skip

Point = dict[str, Any]
Spec = dict[str, Any]


def theme_of(options: Options) -> Theme:
    return THEMES[options.theme]


def points(
    of: Sequence[Cell], metric: str, x: str, series: str, factor: float = 1.0, facts: Facts | None = None
) -> list[Point]:
    """One point per cell that has `metric`: x, series, y with its interval, and what a tooltip tells."""
    found = []
    for cell in of:
        estimate = cell.estimate(metric)
        place = x_value(cell, x, facts)
        if estimate is None or place is None:
            continue
        found.append(
            {
                "x": place,
                "series": series_value(cell, series),
                "y": estimate.value * factor,
                "low": None if estimate.low is None else max(estimate.low * factor, estimate.value * factor * 1e-3),
                "high": None if estimate.high is None else estimate.high * factor,
                "processes": estimate.processes,
                "iterations": estimate.iterations,
                "model": cell.model_label,
                "jobs": ", ".join(map(str, cell.jobs)),
            }
        )
    return found


def x_value(cell: Cell, x: str, facts: Facts | None) -> Any:
    """The cell's place on axis `x`; `parameters` in billions."""
    if x == "parameters":
        size = (facts or Facts()).with_sizes_of(cell.rows).parameters.get(cell.axes["model"])
        return None if size is None else size / 1e9
    return cell.axes[x]


def series_value(cell: Cell, series: str) -> str:
    return cell.model_label if series == "model" else str(cell.axes[series])


def in_order(of: Sequence[Cell], series: str, facts: Facts) -> list[str]:
    """Names of the series: models by size, precisions by width, the rest by name."""
    if series == "quantization":
        return in_precision_order(cell.axes["quantization"] for cell in of)
    if series == "model":
        sized = {cell.model_label: facts.parameters.get(cell.axes["model"], math.inf) for cell in of}
        return sorted(sized, key=lambda name: (sized[name], name))
    present = {cell.axes[series] for cell in of}
    return [str(value) for value in sorted(present, key=lambda v: (isinstance(v, str), v is None, v))]


def fewer(of: View, series: str, most: int = MAX_SERIES) -> tuple[View, list[str], str]:
    """At most `most` series, the ones with most cells, and a note when some had to go."""
    names = in_order(of.cells, series, of.facts)
    if len(names) <= most:
        return of, names, ""
    counts = {name: sum(series_value(cell, series) == name for cell in of.cells) for name in names}
    kept = sorted(names, key=lambda name: -counts[name])[:most]
    ordered = [name for name in names if name in kept]
    note = f"{most} of {len(names)} {series} values shown; filter to see the others"
    return of.only(cell for cell in of.cells if series_value(cell, series) in kept), ordered, note


def color(names: Sequence[str], theme: Theme, title: str | None, *, field: str = "series") -> alt.Color:
    scale = alt.Scale(domain=list(names), range=list(theme.series[: len(names)]))
    return alt.Color(f"{field}:N", title=title, scale=scale, legend=alt.Legend(title=title))


def shape(names: Sequence[str], title: str | None) -> alt.Shape:
    scale = alt.Scale(domain=list(names), range=list(SHAPES[: len(names)]))
    return alt.Shape("series:N", title=title, scale=scale, legend=alt.Legend(title=title))


def log_axis(field: str, title: str, values: Sequence[float], *, channel: type[Any] = alt.X, base: int = 2) -> Any:
    """A logarithmic axis whose ticks are the measured values themselves, where they are few."""
    distinct = sorted(set(values))
    ticks = distinct if len(distinct) <= 12 else None
    low, high = min(distinct), max(distinct)
    margin = 1.12 if high > low else 2
    digits = ".2~r" if high < 100 and low < 1 else "~r"
    return channel(
        f"{field}:Q",
        title=title,
        scale=alt.Scale(type="log", base=base, domain=[low / margin, high * margin], nice=False),
        axis=alt.Axis(values=ticks, grid=True, labelOverlap=True, format=digits)
        if ticks
        else alt.Axis(grid=True, format="~s"),
    )


def value_axis(title: str, data: Sequence[Point], *, log: bool, field: str = "y") -> alt.Y:
    """The measured quantity: logarithmic, or from zero."""
    if not log:
        return alt.Y(f"{field}:Q", title=title, scale=alt.Scale(zero=True, nice=True))
    low = min(p["low"] or p[field] for p in data)
    high = max(p["high"] or p[field] for p in data)
    return alt.Y(
        f"{field}:Q", title=title, scale=alt.Scale(type="log", base=10, domain=[low / 1.15, high * 1.15], nice=False),
        axis=alt.Axis(grid=True, format="~g", tickCount=6, labelOverlap=True),
    )  # fmt: skip


def error_bars(data: Sequence[Point], x: Any, y: Any, tint: Any) -> list[alt.Chart]:
    """Rules with caps from low to high; nothing where no interval exists."""
    with_interval = [p for p in data if p["low"] is not None and p["high"] is not None]
    if not with_interval:
        return []
    base = alt.Chart(alt.Data(values=with_interval)).encode(x=x, color=tint)
    ends = [
        base.mark_tick(thickness=1.2, size=7, orient="horizontal").encode(y=reading(y, end)) for end in ("low", "high")
    ]
    return [base.mark_rule(strokeWidth=1.2).encode(y=reading(y, "low"), y2="high:Q"), *ends]


def reading(y: Any, field: str) -> Any:
    """The same y axis, reading another field."""
    copy = y.copy(deep=True)
    copy.shorthand = f"{field}:Q"
    return copy


def bars_mean(data: Sequence[Point], facts: Facts) -> str:
    """What the error bars are, in words."""
    drawn = [p for p in data if p["low"] is not None]
    if not drawn:
        return "no error bars: this is read once per process, and each cell has one"
    several = {p["processes"] for p in drawn if p["processes"] > 1}
    if several:
        return f"bars: 95 % interval of the mean over {_span(several)} processes per cell"
    iterations = _span({p["iterations"] for p in drawn})
    return (
        f"bars: 95 % interval of the mean over {iterations} iterations of one process; processes differ by about "
        f"{100 * facts.process_sd:.0f} % beyond that; measured until narrow and outliers left out, it covers about "
        f"{100 * STOPPED_COVERAGE:.0f} %"
    )


def finish(chart: Any, number: int, title: str, caption: Sequence[str], options: Options, **meta: Any) -> Spec:
    """The complete specification: size, theme, heading, and machine-readable facts under `usermeta`."""
    if options.heading:
        chart = chart.properties(title=alt.TitleParams(text=f"Figure {number}. {title}", subtitle=list(caption)))
    # Validated against the Vega-Lite schema by the tests instead: here it would take longer than everything else.
    spec: Spec = chart.to_dict(validate=False)
    spec["config"] = config(theme_of(options))
    spec["usermeta"] = {"figure": number, "title": title, "caption": list(caption), "not_enough": None, **meta}
    return spec


def not_enough(number: int, title: str, why: str, options: Options) -> Spec:
    """A figure that says what it would need."""
    lines = wrap([f"not enough data: {why}"], 70)
    text = (
        alt.Chart(alt.Data(values=[{"said": lines}]))
        .mark_text(fontSize=13, lineHeight=20, align="center", color=theme_of(options).muted)
        .encode(text=alt.Text("said:N"))
        .properties(width=options.width, height=120)
    )
    return finish(text, number, title, [], options) | {
        "usermeta": {"figure": number, "title": title, "caption": [], "not_enough": why}
    }


def stands_on(of: View) -> dict[str, Any]:
    """Facts for `usermeta`: fixed parameters, number of results, the jobs."""
    return {
        "fixed": {axis: value for axis, value in of.fixed.items() if value is not None},
        "n": sum(len(cell.rows) for cell in of.cells),
        "jobs": sorted(job for cell in of.cells for job in cell.jobs),
        "simulated": of.selection.simulated,
    }


def also_measured(of: View) -> str:
    """Values of narrowed axes that are not shown, so that nobody takes the slice for the whole."""
    told = [_others(axis, values) for axis, values in of.chosen_among.items() if axis in AXIS_WORDS]
    return f"also measured, not shown: {'; '.join(told)}" if told else ""


def _others(axis: str, values: list[Any]) -> str:
    name, many = AXIS_WORDS[axis]
    if len(values) > MOST_LISTED:
        return f"{len(values)} other {many}"
    ordered = sorted(values, key=lambda v: (isinstance(v, str), v is None, v))
    return f"{name} {', '.join(label(v) if axis == 'model' else str(v) for v in ordered)}".strip()


def _span(values: set[int]) -> str:
    return str(min(values)) if len(values) == 1 else f"{min(values)} to {max(values)}"
