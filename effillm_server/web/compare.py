"""Two sweeps, or two filters of one, cell by cell."""

from __future__ import annotations

import json
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import HTMLResponse

from effillm_server.analysis.filters import FILTERABLE
from effillm_server.analysis.rows import AXES
from effillm_server.api import insight, sweeps
from effillm_server.api.auth import Caller, Reader
from effillm_server.api.rows import spoken_filters
from effillm_server.api.services import Served, Services
from effillm_server.api.views import SweepSummary
from effillm_server.errors import EffillmError
from effillm_server.web import words
from effillm_server.web.templating import page

OFFERED = 100
MOST_CELLS = 400
ALWAYS = ("model", "quantization", "batch_size", "sequence_length")
router = APIRouter(tags=["page-compare"], include_in_schema=False)

Side = Annotated[str, Query(max_length=500)]
Filter = Annotated[str, Query(max_length=300, description="axis=value:axis=value,value")]


@router.get("/compare")
def compare(
    request: Request,
    served: Served,
    who: Reader,
    a: Side = "",
    b: Side = "",
    a_filter: Filter = "",
    b_filter: Filter = "",
    metric: Annotated[str, Query(max_length=100)] = "throughput_tok_s",
    margin: Annotated[str, Query(max_length=20)] = "3",
) -> HTMLResponse:
    """The form, and the comparison once both sides are named."""
    # Imported when it is first asked for, as the routes of the analysis do: it pulls in much.
    from effillm_server.analysis.compare import COMPARABLE_METRICS

    found, why_not = None, None
    if a and b:
        try:
            found = _compared(served, who, _side(a, a_filter), _side(b, b_filter), metric, _share(margin))
        except (EffillmError, ValueError) as error:
            why_not = str(error)
    axes = shown_axes(found["cells"], found["held_equal"]) if found else []
    return page(
        request, who, "compare.html", sweeps=offered(served, who), metrics=list(COMPARABLE_METRICS), found=found,
        why_not=why_not, axes=axes, most=MOST_CELLS, filterable=FILTERABLE, valued_metric=lambda value: words.value(metric, value),
        asked={"a": a, "b": b, "a_filter": a_filter, "b_filter": b_filter, "metric": metric, "margin": margin},
    )  # fmt: skip


def offered(served: Services, who: Caller) -> list[SweepSummary]:
    """The newest sweeps, to choose from."""
    return sweeps.page_of(served, who, None, OFFERED).items


def shown_axes(entries: list[dict[str, Any]], among: list[str]) -> list[str]:
    """Axes worth a column: the usual ones, and those on which the entries differ."""
    return [
        axis
        for axis in AXES
        if axis in among and (axis in ALWAYS or len({repr(entry.get(axis)) for entry in entries}) > 1)
    ]


def _compared(served: Services, who: Caller, a: str, b: str, metric: str, margin: float) -> dict[str, Any]:
    answer = insight.compare(served, who, a, b, spoken_filters(()), metric, margin)
    found: dict[str, Any] = json.loads(bytes(answer.body))
    return found


def _side(sweep: str, filters: str) -> str:
    wanted = filters.replace(";", ":").replace(" ", "").strip(":")
    return f"{sweep}:{wanted}" if wanted else sweep


def _share(percent: str) -> float:
    try:
        share = float(percent) / 100
    except ValueError:
        raise ValueError(f"margin {percent!r} is not a number of percent") from None
    if not 0 < share < 1:
        raise ValueError(f"margin {percent} % is not between 0 and 100")
    return share
