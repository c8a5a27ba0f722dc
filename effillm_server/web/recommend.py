"""What to deploy: sliders for the limits, the answer with what it rests on."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import ValidationError
from starlette.responses import HTMLResponse

from effillm_server.analysis.filters import FILTERABLE
from effillm_server.analysis.rows import AXES
from effillm_server.api import insight
from effillm_server.api import sweeps as api
from effillm_server.api.auth import Caller, Reader
from effillm_server.api.insight_views import Aim, RecommendationRequest
from effillm_server.api.services import Served, Services
from effillm_server.errors import EffillmError
from effillm_server.ledger import queries
from effillm_server.ledger.read_grid import Extremes
from effillm_server.lifecycle import JobState
from effillm_server.web.compare import offered, shown_axes
from effillm_server.web.templating import page

STEPS = 100
MEGA, MS = 1e6, 1e-3
LIMITS = ("memory_mb", "ttft_ms", "throughput", "quality", "hourly")
router = APIRouter(tags=["page-recommend"], include_in_schema=False)


@dataclass(frozen=True)
class Slider:
    """A limit to be drawn along a range. `unlimited` is the end at which it limits nothing."""

    name: str
    title: str
    unit: str
    low: float
    high: float
    step: float
    value: float
    unlimited: float

    @property
    def is_limit(self) -> bool:
        return self.value != self.unlimited


@router.get("/recommend")
def recommend(
    request: Request,
    served: Served,
    who: Reader,
    sweep: Annotated[str, Query(pattern=r"^[A-Za-z0-9_-]{0,64}$")] = "",
    aim: Aim = Aim.THROUGHPUT,
    filters: Annotated[str, Query(alias="filter", max_length=300)] = "",
) -> HTMLResponse:
    """The best measured configuration within the limits; every limit stands in the address."""
    # Imported when it is first asked for, as the routes of the analysis do: it pulls in much.
    from effillm_server.analysis.recommend import AIMS

    choices = offered(served, who)
    chosen = sweep or next((one.id for one in choices if one.counts.get(JobState.MEASURED)), "")
    found, why_not, sliders, title = None, None, [], ""
    if chosen:
        # A sweep that does not exist, or not for this caller, is said here.
        title = api.view_of(served, who.viewer, chosen).name
        asked = {name: request.query_params.get(name, "") for name in LIMITS}
        sliders = _sliders(served, chosen, asked)
        try:
            found = _recommended(served, who, chosen, aim, sliders, filters)
        except EffillmError as error:
            why_not = str(error)
        except ValidationError as error:
            why_not = "; ".join(f"{problem['loc'][0]}: {problem['msg']}" for problem in error.errors())
    entries = _entries(found) if found else []
    return page(
        request, who, "recommend.html", sweeps=choices, chosen=chosen, title=title, aims={name: of.said for name, of in AIMS.items()},
        aim=str(aim), sliders=sliders, found=found, why_not=why_not, entries=entries, filter=filters, filterable=FILTERABLE,
        axes=shown_axes([entry for _, entry in entries], list(AXES)),
    )  # fmt: skip


def _recommended(
    served: Services, who: Caller, sweep: str, aim: Aim, sliders: list[Slider], filters: str
) -> dict[str, Any]:
    limits = {slider.name: slider.value for slider in sliders if slider.is_limit}
    wanted = RecommendationRequest(
        sweep=sweep,
        aim=aim,
        max_memory=limits["memory_mb"] * MEGA if "memory_mb" in limits else None,
        max_ttft=limits["ttft_ms"] * MS if "ttft_ms" in limits else None,
        min_throughput=limits.get("throughput"),
        max_quality_loss=limits["quality"] / 100 if "quality" in limits else None,
        max_hourly_usd=limits.get("hourly"),
        filters=[part for part in filters.replace(" ", "").replace(";", ":").split(":") if part],
    )
    found: dict[str, Any] = json.loads(bytes(insight.recommendations(served, who, wanted).body))
    return found


def _sliders(served: Services, sweep: str, asked: dict[str, str]) -> list[Slider]:
    """The limits with the range that this sweep has measured."""
    with served.reading() as connection:
        seen: Extremes = queries.extremes(connection, sweep)
    found = []
    if seen.memory_high:
        found.append(
            _slider(
                "memory_mb", "Peak memory at most", "MB", (seen.memory_low or 0) / MEGA, seen.memory_high / MEGA, asked
            )
        )
    if seen.ttft_high:
        found.append(
            _slider(
                "ttft_ms", "Time to first token at most", "ms", (seen.ttft_low or 0) / MS, seen.ttft_high / MS, asked
            )
        )
    if seen.throughput_high:
        found.append(
            _slider(
                "throughput",
                "Throughput at least",
                "tokens/s",
                seen.throughput_low or 0,
                seen.throughput_high,
                asked,
                at_least=True,
            )
        )
    found.append(_slider("quality", "Quality loss at most", "%", 0, 100, asked))
    found.append(_slider("hourly", "Price at most", "$/hour", 0, 10, asked))
    return found  # fmt: skip


def _slider(
    name: str, title: str, unit: str, low: float, high: float, asked: dict[str, str], *, at_least: bool = False
) -> Slider:
    """A slider over the range, widened to round numbers; a value outside it, as an address may have, moves its end."""
    step = _round_step((high - low) / STEPS or high / STEPS or 1.0)
    # Ten digits, as a browser counts: the end of a slider must be equal to what comes back.
    bottom, top = round(step * math.floor(low / step), 10), round(step * math.ceil(high / step) + step, 10)
    unlimited = bottom if at_least else top
    value = _number(asked[name])
    if value is None:
        return Slider(name, title, unit, bottom, top, step, unlimited, unlimited)
    return Slider(name, title, unit, min(bottom, value), max(top, value), step, value, unlimited)


def _round_step(raw: float) -> float:
    power = 10.0 ** math.floor(math.log10(raw))
    return float(next(factor for factor in (1, 2, 5, 10) if factor * power >= raw) * power)


def _number(text: str) -> float | None:
    try:
        value = float(text[:40])
    except ValueError:
        return None
    return value if math.isfinite(value) and value >= 0 else None


def _entries(found: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The table: the best, what ties with it, and the Pareto set."""
    best = [("best", found["recommended"])] if found["recommended"] else []
    ties = [("tie", entry) for entry in found["ties"]]
    named = [entry["jobs"] for _, entry in best + ties]
    return best + ties + [("Pareto", entry) for entry in found["pareto"] if entry["jobs"] not in named]
