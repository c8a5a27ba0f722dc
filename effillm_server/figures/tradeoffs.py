"""Figures of trade-offs: memory against throughput with its Pareto front, and the radar of precisions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt

from effillm_server.analysis.cells import Cell
from effillm_server.analysis.pareto import pareto
from effillm_server.analysis.words import number
from effillm_server.figures import parts
from effillm_server.figures.theme import SHAPES
from effillm_server.figures.view import Options, Row, View, require, view

SPOKES: dict[str, tuple[str, str, bool]] = {
    "memory": ("memory_gb", "peak memory, GB", False),
    "throughput": ("throughput_tok_s", "throughput, tokens/s", True),
    "latency": ("ttft_s", "time to first token, s", False),
    "quality": ("quality_kept", "quality kept, of the unquantized", True),
    "energy": ("energy_per_token_j", "energy, J per token", False),
}
RINGS = (0.25, 0.5, 0.75, 1.0)
FARTHEST = 1.1  # where bars beyond the rim are cut, short of the labels
WIDE = 1.75  # half the frame, in radii: the rim and a label on either side


@dataclass(frozen=True)
class MemoryThroughput:
    """A point per model and precision, the Pareto front drawn through those that nothing beats."""

    number: int = 12
    title: str = "Memory against throughput"

    def draw(self, rows: Sequence[Row], options: Options) -> dict[str, Any]:
        """Chart specification. Raises NotEnough below two configurations."""
        of = view(
            rows, options, ("model", "weights", "quantization", "dtype"), {"batch_size": 4, "sequence_length": 128}
        )
        of, models, dropped = parts.fewer(of, "model")
        of, listed, also_dropped = parts.fewer(of, "quantization", len(SHAPES))
        data = self._points(of)
        require(len(data), 2, "two configurations with throughput and memory")
        front = pareto([{"x": p["x"], "y": p["y"]} for p in data], {"x": "min", "y": "max"})
        line = sorted((data[k] for k in front), key=lambda p: p["x"])
        theme = parts.theme_of(options)
        x = alt.X("x:Q", title="peak memory during inference (GB)", scale=alt.Scale(zero=False, nice=True, padding=14))
        y = parts.value_axis("throughput T (tokens/s, log scale)", data, log=True)
        tint = parts.color(models, theme, "model")
        names = [name for name in listed if name in {p["precision"] for p in data}]
        symbol = alt.Shape(
            "precision:N", title="precision", scale=alt.Scale(domain=names, range=list(SHAPES[: len(names)]))
        )
        step = alt.Chart(alt.Data(values=line)).mark_line(
            interpolate="step-after", color=theme.muted, strokeWidth=1.4, strokeDash=[5, 3]
        )
        dots = alt.Chart(alt.Data(values=data)).mark_point(filled=True, size=80, opacity=1)
        tooltip = [alt.Tooltip(f"{n}:N") for n in ("model", "precision", "jobs")] + [
            alt.Tooltip(f"{n}:Q", format=".4g") for n in "xy"
        ]
        tooltip += [alt.Tooltip("perplexity rise:Q", format="+.2%")] * any("perplexity rise" in p for p in data)
        layers = [
            step.encode(x=x, y=y),
            *parts.error_bars(data, x, y, tint),
            dots.encode(x=x, y=y, color=tint, shape=symbol, tooltip=tooltip),
        ]
        caption = of.caption(
            parts.bars_mean(data, of.facts),
            f"dashed: Pareto front, {len(front)} of {len(data)} configurations that no other beats in both",
            dropped, also_dropped, parts.also_measured(of),
        )  # fmt: skip
        chart = alt.layer(*layers).properties(width=options.width, height=options.height)
        meta = parts.stands_on(of) | {"front": [f"{p['model']} {p['precision']}" for p in line]}
        return parts.finish(chart, self.number, self.title, caption, options, **meta)

    def _points(self, of: View) -> list[parts.Point]:
        with_memory = [cell for cell in of.cells if cell.estimate("memory_gb") and cell.estimate("throughput_tok_s")]
        found = []
        for cell in with_memory:
            memory, point = (
                cell.estimate("memory_gb"),
                parts.points([cell], "throughput_tok_s", "quantization", "model"),
            )
            if memory is not None:
                loss = cell.estimate("quality_loss")
                known = {} if loss is None else {"perplexity rise": loss.value}
                found += [{**p, "x": memory.value, "precision": cell.axes["quantization"], **known} for p in point]
        return found


@dataclass(frozen=True)
class Radar:
    """Precisions of one model on up to five spokes; on each the best precision reaches the rim."""

    number: int = 14
    title: str = "Quantization trade-offs"

    def draw(self, rows: Sequence[Row], options: Options) -> dict[str, Any]:
        """Chart specification. Raises NotEnough below two precisions or three measured spokes."""
        of = view(rows, options, ("quantization", "dtype"), {"batch_size": 1, "sequence_length": 128})
        of, names, dropped = parts.fewer(of, "quantization")
        by_name = {cell.axes["quantization"]: cell for cell in of.cells}
        require(len(names), 2, "one model at two precisions or more")
        spokes = [spoke for spoke in SPOKES if all(by_name[name].estimate(SPOKES[spoke][0]) for name in names)]
        require(len(spokes), 3, "three of memory, throughput, latency, quality and energy for every precision")
        corners = [corner for name in names for corner in _corners(by_name, name, names, spokes)]
        missing = [spoke for spoke in SPOKES if spoke not in spokes]
        best = ", ".join(f"{spoke} {_best(by_name, names, spoke)}" for spoke in spokes)
        caption = of.caption(
            f"rim: the best precision of each spoke ({best}); others by their ratio to it, so outside is better",
            _bars_said(corners),
            f"not measured: {', '.join(missing)}" if missing else "",
            dropped,
            parts.also_measured(of),
        )
        chart = _radar(corners, names, spokes, options)
        title = f"{self.title}, {of.cells[0].model_label}"
        return parts.finish(chart, self.number, title, caption, options, **parts.stands_on(of), spokes=spokes)


def _corners(by_name: dict[str, Cell], name: str, names: list[str], spokes: list[str]) -> list[dict[str, Any]]:
    """Corners of one precision's polygon, closed, with the interval along each spoke."""
    found = []
    for k, spoke in enumerate(spokes):
        metric, _, more_is_better = SPOKES[spoke]
        own, others = by_name[name].estimate(metric), [by_name[n].estimate(metric) for n in names]
        values = [estimate.value for estimate in others if estimate is not None]
        if own is None:
            continue
        best = max(values) if more_is_better else min(values)
        reach = [_reach(value, best, more_is_better) for value in (own.value, own.low, own.high)]
        low, high = sorted(reach[1:], key=lambda r: -1.0 if r is None else r) if None not in reach else (None, None)
        at = _at(k, len(spokes))
        jobs = ", ".join(map(str, by_name[name].jobs))
        found.append({
            "series": name, "order": k, "spoke": spoke, "jobs": jobs, "reach": reach[0], "value": own.value, "low": low, "high": high,
            **_xy(reach[0] or 0.0, at), **({} if low is None or high is None else {
                **_xy(min(low, FARTHEST), at, "l"), **_xy(min(high, FARTHEST), at, "h")}),
        })  # fmt: skip
    return [*found, {**found[0], "order": len(spokes)}]


def _reach(value: float | None, best: float, more_is_better: bool) -> float | None:
    if value is None or value <= 0 or best <= 0:
        return None
    return value / best if more_is_better else best / value


def _at(k: int, count: int) -> float:
    """Angle of spoke k, the first one upwards, clockwise."""
    return math.pi / 2 - 2 * math.pi * k / count


def _xy(reach: float, angle: float, of: str = "") -> dict[str, float]:
    return {f"{of}x": reach * math.cos(angle), f"{of}y": reach * math.sin(angle)}


def _bars_said(corners: list[dict[str, Any]]) -> str:
    highs = [corner["high"] for corner in corners if corner["high"] is not None]
    if not highs:
        return ""
    cut = f", cut at {100 * FARTHEST:.0f} %" if max(highs) > FARTHEST else ""
    return f"bars along the spokes: 95 % intervals where there are any{cut}"


def _best(by_name: dict[str, Cell], names: list[str], spoke: str) -> str:
    metric, said, more_is_better = SPOKES[spoke]
    values = [estimate.value for name in names if (estimate := by_name[name].estimate(metric)) is not None]
    return f"{number(max(values) if more_is_better else min(values))} {said.split(', ')[-1]}"


def _radar(corners: list[dict[str, Any]], names: list[str], spokes: list[str], options: Options) -> Any:
    theme = parts.theme_of(options)
    count = len(spokes)
    scale = alt.Scale(domain=[-WIDE, WIDE], nice=False)
    bottom = min(math.sin(_at(k, count)) for k in range(count)) - 0.3
    upright = alt.Scale(domain=[bottom, 1.35], nice=False)
    x, y = alt.X("x:Q", scale=scale, axis=None), alt.Y("y:Q", scale=upright, axis=None)
    web = [{"ring": r, "order": k, **_xy(r, _at(k, count))} for r in RINGS for k in range(count + 1)]
    arms = [{"spoke": s, "order": o, **_xy(o * 1.0, _at(k, count))} for k, s in enumerate(spokes) for o in (0, 1)]
    labels = [{"text": s, "side": _side(_at(k, count)), **_xy(1.17, _at(k, count))} for k, s in enumerate(spokes)]
    between = math.cos(math.pi / count)
    ticks = [{"text": f"{100 * r:.0f} %", **_xy(r * between, _at(0, count) + math.pi / count)} for r in RINGS]
    tint = parts.color(names, theme, "precision")
    polygon = alt.Chart(alt.Data(values=corners))
    whiskers = alt.Chart(alt.Data(values=[c for c in corners if c["low"] is not None]))
    order = alt.Order("order:Q")
    layers = [
        alt.Chart(alt.Data(values=web)).mark_line(color=theme.grid, strokeWidth=1).encode(x=x, y=y, detail="ring:N", order=order),
        alt.Chart(alt.Data(values=arms)).mark_line(color=theme.grid, strokeWidth=1).encode(x=x, y=y, detail="spoke:N", order=order),
        alt.Chart(alt.Data(values=ticks)).mark_text(color=theme.muted, fontSize=9).encode(x=x, y=y, text="text:N"),
        polygon.mark_line(strokeWidth=2).encode(x=x, y=y, color=tint, order=order),
        whiskers.mark_rule(strokeWidth=3).encode(
            x=alt.X("lx:Q", scale=scale, axis=None), y=alt.Y("ly:Q", scale=upright, axis=None), x2="hx:Q", y2="hy:Q", color=tint
        ),
        polygon.mark_point(filled=True, size=55, opacity=1).encode(
            x=x, y=y, color=tint, shape=parts.shape(names, "precision"),
            tooltip=[alt.Tooltip(f"{name}:N") for name in ("series", "spoke", "value", "reach")],
        ),
        *(
            alt.Chart(alt.Data(values=of_side)).mark_text(color=theme.ink, fontSize=12, align=side).encode(x=x, y=y, text="text:N")
            for side in ("left", "center", "right") if (of_side := [label for label in labels if label["side"] == side])
        ),
    ]  # fmt: skip
    side = max(options.height, 360)
    return alt.layer(*layers).properties(width=side * 2 * WIDE / 2.7, height=side * (1.35 - bottom) / 2.7)


def _side(angle: float) -> str:
    """Which way a label at this angle is set, so that it stands clear of its spoke's end."""
    across = math.cos(angle)
    return "center" if abs(across) < 0.2 else "left" if across > 0 else "right"


FIGURES: dict[str, MemoryThroughput | Radar] = {
    "memory-throughput": MemoryThroughput(),
    "quantization-radar": Radar(),
}
