"""Figures with bars: memory and throughput by precision, cost efficiency by device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import altair as alt

from effillm_server.analysis.cells import label
from effillm_server.analysis.efficiency import cost
from effillm_server.figures import parts
from effillm_server.figures.theme import MAX_SERIES
from effillm_server.figures.view import NotEnough, Options, Row, View, require, view

MOST_PRECISIONS = 32
BAR = 14  # least width of a bar with its share of the gaps, pixels


@dataclass(frozen=True)
class ByPrecision:
    """Bars of `metric` per model, one per precision; where precisions are more than colours, per precision, one per model."""

    number: int
    title: str
    metric: str
    y_title: str
    preferred: dict[str, Any] = field(default_factory=dict)

    def draw(self, rows: Sequence[Row], options: Options) -> dict[str, Any]:
        """Chart specification. Raises NotEnough below two precisions."""
        of = view(rows, options, ("model", "weights", "quantization", "dtype"), self.preferred)
        of, models, dropped = parts.fewer(of, "model")
        of, listed, also_dropped = parts.fewer(of, "quantization", MOST_PRECISIONS)
        data = _one_each(parts.points(of.cells, self.metric, "model", "quantization"))
        names = [name for name in listed if name in {p["series"] for p in data}]
        require(len(names), 2, f"{self.metric} of one model at two precisions or more")
        theme = parts.theme_of(options)
        among, inner = (models, names) if len(names) <= MAX_SERIES else (names, models)
        by, within, said = ("model", "series", "precision") if inner is names else ("series", "model", "model")
        labels = {"labelAngle": 0, "labelLimit": 160} if inner is names else {"labelAngle": -40, "labelOverlap": False}
        x = alt.X(f"{by}:N", title=None, sort=among, axis=alt.Axis(grid=False, **labels))
        offset = alt.XOffset(f"{within}:N", sort=inner, scale=alt.Scale(domain=inner, paddingInner=0.08))
        y = alt.Y("y:Q", title=self.y_title, scale=alt.Scale(zero=True, nice=True))
        tint = parts.color(inner, theme, said, field=within)
        base = alt.Chart(alt.Data(values=data)).encode(x=x, xOffset=offset)
        tooltip = [
            alt.Tooltip("model:N"),
            alt.Tooltip("series:N", title="precision"),
            alt.Tooltip("y:Q", format=".4g"),
            alt.Tooltip("jobs:N"),
        ]
        layers = [base.mark_bar().encode(y=y, color=tint, tooltip=tooltip), *_whiskers(data, x, y, theme.ink, offset)]
        chart = alt.layer(*layers).properties(
            width=max(options.width, 90 * len(models), len(data) * BAR), height=options.height
        )
        caption = of.caption(parts.bars_mean(data, of.facts), dropped, also_dropped, parts.also_measured(of))
        return parts.finish(chart, self.number, self.title, caption, options, **parts.stands_on(of))


@dataclass(frozen=True)
class CostEfficiency:
    """Tokens per second per dollar of each priced device, one model; beside it dollars per million tokens."""

    number: int = 16
    title: str = "Cost efficiency across hardware"

    def draw(self, rows: Sequence[Row], options: Options) -> dict[str, Any]:
        """Chart specification. Raises NotEnough without a priced device."""
        of = view(rows, options, ("hardware", "dtype"))
        entries = [
            entry for entry in cost(of.cells, of.facts) if entry["tok_s_per_usd"] or entry["usd_per_million_tokens"]
        ]
        if not entries:
            classes = ", ".join(sorted({cell.axes["hardware"] for cell in of.cells}))
            raise NotEnough(f"needs a price for {classes}: name it in the file EFFILLM_PRICES points to")
        bought = [
            _bar(e, e["tok_s_per_usd"], e["tok_s_per_usd_low"], e["tok_s_per_usd_high"])
            for e in entries
            if e["tok_s_per_usd"]
        ]
        rented = [
            _bar(e, e["usd_per_million_tokens"], *_cost_bounds(e, of)) for e in entries if e["usd_per_million_tokens"]
        ]
        panels = []
        if bought:
            panels.append(_panel(bought, "throughput per purchase price (tokens/s per $)", options, of))
        if rented:
            panels.append(_panel(rented, "price per million tokens ($, from the hourly price)", options, of))
        prices = "; ".join(f"{e['hardware']} {_money(e)} ({e['price_date']})" for e in entries)
        points = parts.points(of.cells, "throughput_tok_s", "hardware", "model")
        caption = of.caption(parts.bars_mean(points, of.facts), f"prices: {prices}", parts.also_measured(of))
        chart = alt.hconcat(*panels, spacing=40) if len(panels) > 1 else panels[0]
        title = f"{self.title}, {label(of.fixed['model'])}"
        return parts.finish(chart, self.number, title, caption, options, **parts.stands_on(of))


def _one_each(data: list[parts.Point]) -> list[parts.Point]:
    """One point per model and precision: the first, should a model have been measured with both kinds of weights."""
    seen: dict[tuple[str, str], parts.Point] = {}
    for point in data:
        seen.setdefault((point["model"], point["series"]), point)
    return list(seen.values())


def _whiskers(data: Sequence[parts.Point], x: Any, y: Any, ink: str, offset: Any = None) -> list[Any]:
    with_interval = [p for p in data if p["low"] is not None and p["high"] is not None]
    if not with_interval:
        return []
    base = alt.Chart(alt.Data(values=with_interval)).encode(x=x)
    base = base if offset is None else base.encode(xOffset=offset)
    ends = [
        base.mark_tick(color=ink, thickness=1.2, size=8, orient="horizontal").encode(y=parts.reading(y, end))
        for end in ("low", "high")
    ]
    return [base.mark_rule(color=ink, strokeWidth=1.2).encode(y=parts.reading(y, "low"), y2="high:Q"), *ends]


def _bar(entry: dict[str, Any], y: float, low: float | None, high: float | None) -> dict[str, Any]:
    jobs = ", ".join(map(str, entry["jobs"]))
    return {"hardware": entry["hardware"], "y": y, "low": low, "high": high, "jobs": jobs}


def _cost_bounds(entry: dict[str, Any], of: View) -> tuple[float | None, float | None]:
    cell = next(cell for cell in of.cells if cell.axes["hardware"] == entry["hardware"])
    estimate = cell.estimate("throughput_tok_s")
    if estimate is None or not estimate.low or not estimate.high or estimate.low <= 0:
        return None, None
    price = entry["usd_per_million_tokens"] * estimate.value
    return price / estimate.high, price / estimate.low


def _panel(data: list[dict[str, Any]], title: str, options: Options, of: View) -> Any:
    names = sorted({p["hardware"] for p in data})
    theme = parts.theme_of(of.options)
    x = alt.X("hardware:N", title=None, sort=names, axis=alt.Axis(labelAngle=0, grid=False))
    y = alt.Y("y:Q", title=title, scale=alt.Scale(zero=True, nice=True))
    bars = alt.Chart(alt.Data(values=data)).mark_bar(color=theme.series[0], size=34).encode(x=x, y=y)
    width = max(options.width / 2 - 40, 60 * len(names))
    return alt.layer(bars, *_whiskers(data, x, y, theme.ink)).properties(width=width, height=options.height)


def _money(entry: dict[str, Any]) -> str:
    told = [f"${entry['purchase_usd']:,.0f}"] if entry["purchase_usd"] else []
    told += [f"${entry['hourly_usd']:.2f}/h"] if entry["hourly_usd"] else []
    return " and ".join(told)


FIGURES: dict[str, ByPrecision | CostEfficiency] = {
    "memory-by-quantization": ByPrecision(11, "Memory by quantization method", "memory_gb", "peak memory during inference (GB)",
        {"batch_size": 1, "sequence_length": 128}),
    "throughput-by-quantization": ByPrecision(13, "Throughput by quantization method", "throughput_tok_s",
        "throughput T (tokens/s)", {"batch_size": 4, "sequence_length": 128}),
    "cost-efficiency": CostEfficiency(),
}  # fmt: skip
