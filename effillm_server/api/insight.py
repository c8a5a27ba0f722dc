"""Routes from rows to decisions: analysis, figures, report, comparison, recommendation.

All of them compute in the server's threads and one after the other; what they need is imported when it is first asked for.
"""

from __future__ import annotations

import json
import math
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Path, Query, Response

from effillm_server.api import insight_examples
from effillm_server.api.auth import Reader
from effillm_server.api.documented import problems, raw
from effillm_server.api.insight_rows import Gathered, facts_of, gather, side
from effillm_server.api.insight_views import (
    AnalysisView,
    ComparisonView,
    FiguresView,
    RecommendationRequest,
    RecommendationView,
)
from effillm_server.api.rows import Asked, spoken_filters
from effillm_server.api.services import Served, Services, SweepId
from effillm_server.errors import BadInput

if TYPE_CHECKING:
    from effillm_server.figures import Options

router = APIRouter(prefix="/v1", tags=["insight"])


class Theme(StrEnum):
    LIGHT = "light"
    DARK = "dark"


class Drawn(StrEnum):
    JSON = "json"
    SVG = "svg"
    PNG = "png"
    PDF = "pdf"


IncludeInvalid = Annotated[bool, Query(description="count in rows whose conditions made them invalid")]
NoiseFloor = Annotated[
    float | None,
    Query(
        gt=0, lt=1, description="standard deviation of the ratio of two runs of a cell, as `effillm doctor` finds it"
    ),
]
FigureName = Annotated[
    str,
    Path(min_length=1, max_length=100, description="name of a figure", examples=[insight_examples.FIGURE]),
]
Series = Annotated[
    str | None, Query(max_length=100, description="the axis with a line per value, instead of the figure's own")
]
SIDE = "a sweep, or filtered rows of one: `sweep:axis=value,value:axis=value`"
# Pages of a report and pictures style themselves; a live one also runs what it carries, in an origin of its own.
STYLED = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'; sandbox"
LIVE = f"{STYLED} allow-scripts; script-src 'unsafe-inline' 'unsafe-eval'"
PICTURES: dict[Drawn, tuple[str, Any, dict[str, Any]]] = {
    Drawn.JSON: ("application/json", {}, {"type": "object"}),
    Drawn.SVG: ("image/svg+xml", insight_examples.SVG, {"type": "string"}),
    Drawn.PNG: ("image/png", "PNG", {"type": "string", "format": "binary"}),
    Drawn.PDF: ("application/pdf", "%PDF", {"type": "string", "format": "binary"}),
}


@router.get(
    "/sweeps/{sweep_id}/analysis", summary="What a sweep shows", response_model=AnalysisView, responses=problems(404)
)
def analysis(
    served: Served,
    who: Reader,
    sweep_id: SweepId,
    filters: Asked,
    include_invalid: IncludeInvalid = False,
    noise_floor: NoiseFloor = None,
) -> Response:
    """Fits, efficiencies, frontier, claims and findings. Without a valid row the lists are empty and `remark` says why."""
    with served.desk.turn():
        from effillm_server.analysis import analyse

        found = gather(served, who.viewer, sweep_id, filters)
        facts = facts_of(served, found, noise_floor=noise_floor)
        return _answer(analyse(found.rows, facts, include_invalid=include_invalid))


@router.get(
    "/sweeps/{sweep_id}/figures",
    summary="The figures, and what each needs",
    response_model=FiguresView,
    responses=problems(404),
)
def figures(
    served: Served,
    who: Reader,
    sweep_id: SweepId,
    filters: Asked,
    include_invalid: IncludeInvalid = False,
) -> Response:
    """Every figure of the paper by name; `needs` says what these rows lack for it."""
    with served.desk.turn():
        from effillm_server.figures import FIGURES, chart

        found = gather(served, who.viewer, sweep_id, filters)
        options = _options(served, found, include_invalid=include_invalid)
        needs = {name: chart(name, found.rows, options)["usermeta"]["not_enough"] for name in FIGURES}
        entries = [
            {"name": name, "number": figure.number, "title": figure.title, "can_be_drawn": needs[name] is None,
             "needs": needs[name]}
            for name, figure in FIGURES.items()
        ]  # fmt: skip
        return _answer({"items": entries})


@router.get(
    "/sweeps/{sweep_id}/figures/{name}.{format}",
    summary="A figure as Vega-Lite, SVG, PNG or PDF",
    response_class=Response,
    responses={
        **problems(404),
        200: {
            "description": "the figure; where the rows cannot fill it, a frame that says what it needs",
            "content": {
                media: raw(media, example, "", schema)["content"][media] for media, example, schema in PICTURES.values()
            },
        },
    },
)
def figure(
    served: Served,
    who: Reader,
    sweep_id: SweepId,
    name: FigureName,
    format: Annotated[Drawn, Path(description="json, svg, png or pdf", examples=["json"])],
    filters: Asked,
    series: Series = None,
    theme: Theme = Theme.LIGHT,
    include_invalid: IncludeInvalid = False,
    noise_floor: NoiseFloor = None,
    strict: Annotated[bool, Query(description="a problem instead of a frame when the rows cannot fill it")] = False,
) -> Response:
    """Drawn on the spot from the rows there are, also while the sweep still runs."""
    with served.desk.turn():
        from effillm_server.figures import MEDIA_TYPES, chart, render

        found = gather(served, who.viewer, sweep_id, filters)
        options = _options(served, found, noise_floor, include_invalid=include_invalid, series=series, theme=str(theme))
        spec = chart(name, found.rows, options)
        lacking = spec["usermeta"]["not_enough"]
        if strict and lacking is not None:
            raise BadInput(f"not enough data for figure {name!r}: {lacking}", field="name")
        content = _json(spec) if format is Drawn.JSON else render(spec, str(format))
        return Response(content, media_type=MEDIA_TYPES[str(format)], headers={"Content-Security-Policy": STYLED})


@router.get(
    "/sweeps/{sweep_id}/report.html",
    summary="The report: one page that needs nothing else",
    response_class=Response,
    responses={
        **problems(404),
        200: raw("text/html", insight_examples.REPORT, "findings, figures, fits, claims, limits, validity, hardware"),
    },
)
def report(
    served: Served,
    who: Reader,
    sweep_id: SweepId,
    filters: Asked,
    interactive: Annotated[
        bool, Query(description="live charts; the page then carries the code that draws them")
    ] = False,
    include_invalid: IncludeInvalid = False,
    noise_floor: NoiseFloor = None,
) -> Response:
    """To be saved and read anywhere, also without a network."""
    with served.desk.turn():
        from effillm_server.figures import report as written

        found = gather(served, who.viewer, sweep_id, filters)
        options = _options(served, found, noise_floor, include_invalid=include_invalid)
        page = written(found.sweep, found.rows, options, interactive=interactive).encode()
    headers = {
        "Content-Security-Policy": LIVE if interactive else STYLED,
        "Content-Disposition": f'inline; filename="{sweep_id}.html"',
    }
    return Response(page, media_type="text/html; charset=utf-8", headers=headers)


@router.get(
    "/compare",
    summary="Compare two sweeps, or two filters of one",
    response_model=ComparisonView,
    responses=problems(404),
)
def compare(
    served: Served,
    who: Reader,
    a: Annotated[str, Query(max_length=500, description=SIDE, examples=[insight_examples.SIDE_A])],
    b: Annotated[str, Query(max_length=500, description=SIDE, examples=[insight_examples.SIDE_B])],
    filters: Asked,
    metric: Annotated[str, Query(max_length=100, description="what is compared")] = "throughput_tok_s",
    margin: Annotated[float, Query(gt=0, lt=1, description="differences within this share are the same")] = 0.03,
    across: Annotated[
        list[Annotated[str, Query(max_length=40)]] | None,
        Query(max_length=20, description="axes that differ on purpose; none: those that differ as a whole"),
    ] = None,
    include_invalid: IncludeInvalid = False,
    noise_floor: NoiseFloor = None,
    fail_if: Annotated[
        str | None, Query(max_length=100, description="mark the cells that meet this, such as `slower:3%`")
    ] = None,
) -> Response:
    """Cell by cell: ratio with interval, test, and verdict faster, slower, same or unsure, corrected for the number of cells."""
    sides = (side(a, "a"), side(b, "b"))
    with served.desk.turn():
        from effillm_server.analysis.compare import Options, fails
        from effillm_server.analysis.compare import compare as compared

        first, second = (gather(served, who.viewer, sweep_id, own | filters) for sweep_id, own in sides)
        facts = facts_of(served, first, second, noise_floor=noise_floor)
        options = Options(metric, margin, tuple(across) if across else None, include_invalid, facts)
        result = compared(first.rows, second.rows, options)
        tripped = fails(result, _readable(fail_if, result)) if fail_if is not None else []
        named = {"a": _side(first), "b": _side(second)}
        return _answer(named | result | {"fail_if": fail_if, "tripped": tripped})


@router.post(
    "/recommendations",
    summary="What to deploy, among what a sweep has measured",
    response_model=RecommendationView,
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": {"$ref": "#/components/schemas/RecommendationRequest"},
                    "example": insight_examples.RECOMMENDATION_REQUEST,
                }
            },
        }
    },
    responses=problems(404),
)
def recommendations(served: Served, who: Reader, wanted: RecommendationRequest) -> Response:
    """A limit counts as kept only if the unfavourable bound of the 95 % interval keeps it; ties are called ties."""
    filters = spoken_filters(wanted.filters)
    with served.desk.turn():
        from effillm_server.analysis.recommend import Constraints, recommend

        found = gather(served, who.viewer, wanted.sweep, filters)
        limits = Constraints(
            max_memory_bytes=wanted.max_memory,
            max_ttft_s=wanted.max_ttft,
            max_quality_loss=wanted.max_quality_loss,
            max_purchase_usd=wanted.max_purchase_usd,
            max_hourly_usd=wanted.max_hourly_usd,
            min_throughput_tok_s=wanted.min_throughput,
        )
        facts = facts_of(served, found, noise_floor=wanted.noise_floor)
        return _answer(recommend(found.rows, str(wanted.aim), limits, facts))


def _options(served: Services, found: Gathered, noise_floor: float | None = None, **chosen: Any) -> Options:
    from effillm_server.figures import Options

    return Options(filters=found.filters, facts=facts_of(served, found, noise_floor=noise_floor), **chosen)


def _side(of: Gathered) -> dict[str, Any]:
    return {"sweep": of.sweep.id, "name": of.sweep.name, "filters": {axis: list(v) for axis, v in of.filters.items()}}


def _readable(condition: str, result: dict[str, Any]) -> str:
    """The condition, if its word is one of this metric's verdicts: another would never be met and pass for good news."""
    word = condition.partition(":")[0].strip()
    if word in {"faster", "slower", "smaller", "larger"} and word not in result["counts"]:
        raise BadInput(
            f"no cell is ever {word!r} in {result['metric']}: its verdicts are {', '.join(result['counts'])}",
            field="fail_if",
        )
    return condition


def _answer(value: dict[str, Any]) -> Response:
    """The answer as bytes, made here in the thread and not in the event loop."""
    return Response(_json(value), media_type="application/json")


def _json(value: Any) -> bytes:
    return json.dumps(_finite(value), allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode()


def _finite(value: Any) -> Any:
    """`value` with null for the numbers that JSON cannot tell."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return value
