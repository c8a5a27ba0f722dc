"""The report: one self-contained HTML file with findings, figures, fits, claims, limits, validity and hardware."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from html import escape
from typing import Any

import vl_convert

from effillm_server.analysis.cells import label, select
from effillm_server.analysis.recommend import AIMS, Constraints, recommend
from effillm_server.analysis.statistics import STOPPED_COVERAGE
from effillm_server.analysis.study import analyse
from effillm_server.analysis.words import number, percent, plural
from effillm_server.errors import BadInput
from effillm_server.figures import sections
from effillm_server.figures.catalogue import FIGURES, chart
from effillm_server.figures.html import Raw, folded, inline_svg, page, table
from effillm_server.figures.render import render
from effillm_server.figures.sections import rests_on, section
from effillm_server.figures.view import Options
from effillm_server.records import SweepRecord

Row = Mapping[str, Any]
SECTIONS = (
    "findings",
    "recommendations",
    "figures",
    "claims",
    "fits",
    "efficiency",
    "limits",
    "validity",
    "hardware",
    "results",
)
MOST_MODELS = 20
INTERVALS = (
    f"Intervals of one process are 95 % intervals by name. Measuring stops when they are narrow, and iterations marked as outliers "
    f"are left out: simulated, they then hold the truth in about {100 * STOPPED_COVERAGE:.0f} % of cells where iterations are independent "
    "and normal, in about 70 % where neighbours are correlated or the times skewed (docs/statistics.md)."
)
POINT_COLUMNS = (
    "series",
    "model",
    "precision",
    "hardware",
    "spoke",
    "b",
    "s",
    "x",
    "y",
    "low",
    "high",
    "reach",
    "jobs",
)


def report(
    sweep: SweepRecord | None, rows: Iterable[Row], options: Options | None = None, *, interactive: bool = False
) -> str:
    """The whole report as HTML without scripts; `interactive` adds live charts and the code that draws them.

    `rows` are those of `row_with_series` (hardware is then described) or of `row`.
    """
    everything = list(rows)
    chosen = replace(options or Options(), heading=False, theme="light")
    study = analyse(everything, chosen.facts, include_invalid=chosen.include_invalid)
    title = "EffiLLM report" if sweep is None else f"EffiLLM report: {sweep.name}"
    body = [
        _header(title, sweep, study),
        _findings(study),
        _recommendations(everything, chosen),
        _figures(everything, chosen, interactive),
        sections.claims(study),
        sections.fits(study),
        sections.efficiency(study),
        sections.limits(study),
        sections.validity(everything, study),
        sections.hardware(everything),
        sections.results(everything),
    ]
    head = f"<script>{_live_code()}</script>" if interactive else ""
    return page(title, "".join(body), head=head)


def _header(title: str, sweep: SweepRecord | None, study: Mapping[str, Any]) -> str:
    summary = study["summary"]
    states = ", ".join(f"{count:,} {state}" for state, count in sorted(summary["states"].items()))
    facts = [f"{plural(summary['rows'], 'job')}: {states}" if states else "no jobs"]
    if sweep is not None:
        facts.insert(0, f"sweep {sweep.id}, submitted {sweep.created_at:%Y-%m-%d %H:%M} UTC")
    notices = []
    if summary["simulated"]:
        notices.append("These rows are SIMULATED: declared times, not measurements.")
    if summary["synthetic_weights"]:
        notices.append(
            "Some or all models have synthetic weights: the exact architecture with random numbers. Speed and memory are those of "
            "the real model, its answers are not."
        )
    if summary["remark"]:
        notices.append(summary["remark"])
    links = "".join(f"<a href='#{name}'>{name}</a>" for name in SECTIONS)
    return (
        f"<header><h1>{escape(title)}</h1><p class='muted'>{escape(' · '.join(facts))}</p>"
        + "".join(f"<p class='notice'>{escape(notice)}</p>" for notice in notices)
        + f"<nav>{links}</nav></header>"
    )


def _findings(study: Mapping[str, Any]) -> str:
    items = "".join(
        f"<li>{escape(found['sentence'])} <span class='muted'>{rests_on(found['jobs'])}</span></li>"
        for found in study["findings"]
    )
    noise = study["noise_floor"]
    note = (
        f"<p class='muted'>Where a cell was measured in one process only, two runs of it are taken to differ by "
        f"{percent(noise['sd_of_ratio'])} (standard deviation of their ratio; {escape(noise['source'])}).</p>"
    )
    return section("findings", "Findings", f"<ul>{items}</ul>{note}" if items else f"<p>No finding.</p>{note}")


def _recommendations(rows: list[Row], options: Options) -> str:
    """Per model, because a smaller model is faster without answering as well."""
    models = sorted({row["model"] for row in select(rows).rows})
    unanswered: dict[str, str] = {}
    lines = []
    for model in models[:MOST_MODELS]:
        for aim in AIMS:
            try:
                answer = recommend(rows, aim, Constraints(where={"model": (model,)}), options.facts)
            except BadInput as why:
                unanswered[aim] = str(why)
                continue
            lines.append([label(model), aim, answer["sentence"], rests_on(answer["rests_on"])])
    missing = "".join(f"<p class='missing'>{escape(aim)}: {escape(why)}.</p>" for aim, why in unanswered.items())
    note = "<p class='muted'>Without constraints, among everything measured; <code>effillm recommend</code> takes limits.</p>"
    if len(models) > MOST_MODELS:
        note += f"<p class='muted'>The first {MOST_MODELS} of {len(models)} models.</p>"
    found = table(["model", "aim", "configuration", "rests on"], lines, fold="all recommendations")
    return section("recommendations", "What to deploy", found + missing + note)


def _figures(rows: list[Row], options: Options, interactive: bool) -> str:
    drawn, missing = [], []
    for name, figure in FIGURES.items():
        spec = chart(name, rows, options)
        meta = spec["usermeta"]
        if meta["not_enough"] is not None:
            missing.append(f"<p class='missing'>Figure {figure.number}, {escape(figure.title.lower())} — not enough data: "
                           f"{escape(meta['not_enough'])}.</p>")  # fmt: skip
            continue
        caption = "<br>".join(escape(line) for line in meta["caption"])
        heading = f"Figure {meta['figure']}. {meta['title']}"
        picture = (
            _live(name, spec)
            if interactive
            else inline_svg(render(spec, "svg").decode(), f"f{meta['figure']}", heading)
        )
        drawn.append(
            f"<figure id='{name}'>{picture}<figcaption><b>{escape(heading)}</b><br>{caption}{_points(spec)}</figcaption></figure>"
        )
    note = f"<p class='muted'>{escape(INTERVALS)}</p>" if drawn else ""
    return section("figures", "Figures", note + "".join(drawn) + "".join(missing))


def _points(spec: Mapping[str, Any]) -> Raw:
    """The numbers behind a figure, as a table to open."""
    candidates = [data for data in _data_of(spec) if data and "jobs" in data[0]]
    points = max(candidates, key=len, default=[])
    columns = [column for column in POINT_COLUMNS if any(column in point for point in points)]
    lines = [[number(p[c], 4) if isinstance(p.get(c), float) else p.get(c) for c in columns] for p in points]
    return folded("numbers", table(columns, lines)) if points else Raw("")


def _data_of(spec: Any) -> list[list[dict[str, Any]]]:
    """Every inline data set of a specification."""
    if isinstance(spec, list):
        return [data for inner in spec for data in _data_of(inner)]
    if not isinstance(spec, dict):
        return []
    own = spec.get("data")
    found = [own["values"]] if isinstance(own, dict) and isinstance(own.get("values"), list) else []
    return found + [data for key in ("layer", "hconcat") for data in _data_of(spec.get(key))]


def _live(name: str, spec: Mapping[str, Any]) -> Raw:
    """A live chart: the specification as a JSON block that cannot end its own element, and the call that draws it."""
    block = json.dumps(spec, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    return Raw(
        f"<div id='live-{name}'></div><script type='application/json' id='spec-{name}'>{block}</script>"
        f"<script>vegaEmbed('#live-{name}',JSON.parse(document.getElementById('spec-{name}').textContent),{{actions:false}})</script>"
    )


def _live_code() -> str:
    """Vega, Vega-Lite and Vega-Embed in one script, from the renderer's own copy: nothing is fetched."""
    return str(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")).replace("</script", "<\\/script")
