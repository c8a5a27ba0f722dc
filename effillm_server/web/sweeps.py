"""Pages of sweeps: the list, one with its matrix, findings, figures, frontier, jobs and definition; cancel and retry."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from markupsafe import Markup
from starlette.concurrency import run_in_threadpool
from starlette.responses import HTMLResponse, RedirectResponse

from effillm_server.api import insight, jobs, results
from effillm_server.api import sweeps as api
from effillm_server.api.auth import Caller, Reader, Submitter, may_change
from effillm_server.api.rows import Asked
from effillm_server.api.services import EVERYTHING, Served, Services, SweepId, seen
from effillm_server.api.views import SweepView
from effillm_server.errors import EffillmError
from effillm_server.ledger import queries
from effillm_server.lifecycle import JobState
from effillm_server.records import JobRecord, Viewer
from effillm_server.web import words
from effillm_server.web.grid import BY_STATE, METRICS, Choice, Grid, caption, choose, grid
from effillm_server.web.progress import Progress, parts, progress
from effillm_server.web.shared import Shared
from effillm_server.web.templating import page, part

ON_A_PAGE = 25
JOBS_ON_A_PAGE = 100
SHOWN_RUNNING = 4
# A page of a large sweep costs more to make, and changes less of what is seen: (jobs, seconds between two looks).
ANALYSIS_S = 10.0
PATIENCE_S = ((2_000, 1.0), (50_000, 4.0), (2**63, 15.0))
TABS = {
    "": "Matrix", "/findings": "Findings", "/figures": "Figures", "/frontier": "Frontier", "/jobs": "Jobs",
    "/definition": "Definition",
}  # fmt: skip
router = APIRouter(tags=["page-sweeps"], include_in_schema=False)

After = Annotated[str | None, Query(max_length=200)]


@dataclass(frozen=True)
class Live:
    """What a page follows: the event stream's address, behind which event, and how often it may look again."""

    stream: str
    after: int
    every_s: float


@router.get("/")
def home() -> Response:
    return RedirectResponse("/sweeps", 303)


@router.get("/sweeps")
def listing(request: Request, served: Served, who: Reader, after: After = None) -> HTMLResponse:
    """All sweeps, newest first, with how far each is."""
    live = live_of(served)
    found = api.page_of(served, who, after, ON_A_PAGE)
    lines = [(sweep, progress(sweep), parts(sweep)) for sweep in found.items]
    return page(request, who, "sweeps.html", lines=lines, next=found.next, after=after, live=live)


@router.get("/sweeps/{sweep_id}")
async def matrix(request: Request, served: Served, who: Reader, sweep_id: SweepId) -> HTMLResponse:
    """The sweep and its matrix as a grid."""
    above = await served.together.get(
        ("above", sweep_id), lambda: _above(served, EVERYTHING, sweep_id, live_of(served, sweep_id))
    )
    seen(above.sweep, sweep_id, who.viewer)
    return await run_in_threadpool(_matrix, request, served, who, above)


def _matrix(request: Request, served: Services, who: Caller, above: _Above) -> HTMLResponse:
    shown, sweep_id = above.shown(who), above.sweep.id
    choice = choose(shown["sweep"].definition, dict(request.query_params))
    matrices: Shared[tuple[Grid, Markup]] = request.app.state.matrices
    (drawn, table), is_behind = matrices.get(
        (sweep_id, repr(choice.slice), choice.colour), shown["live"].after, lambda: _drawn(served, sweep_id, choice)
    )
    colours = {name: metric.title for name, metric in METRICS.items()} | {BY_STATE: "state"}
    return page(
        request, who, "matrix.html", tab="", choice=choice, grid=drawn, table=table, is_behind=is_behind, colours=colours, **shown
    )  # fmt: skip


@router.get("/sweeps/{sweep_id}/findings")
def findings(request: Request, served: Served, who: Reader, sweep_id: SweepId, filters: Asked) -> HTMLResponse:
    """What the rows say so far: findings, the paper's claims, fits, efficiencies."""
    shown = _shown(served, who, sweep_id)
    # An analysis is all processor time.
    shown["live"] = replace(shown["live"], every_s=max(ANALYSIS_S, shown["live"].every_s))
    analysis, why_not, tables = None, None, []
    try:
        analysis = json.loads(bytes(insight.analysis(served, who, sweep_id, filters).body))
    except EffillmError as error:
        why_not = str(error)
    else:
        from effillm_server.figures import sections

        # The report's own: escaped there, without scripts or styles. What may be scrolled can be reached by keyboard.
        made = [make(analysis) for make in (sections.claims, sections.efficiency, sections.fits)]
        tables = [part.replace("<div class='wide'>", "<div class='wide' tabindex='0'>") for part in made]
    return page(
        request, who, "findings.html", tab="/findings", analysis=analysis, why_not=why_not, sections=tables, **shown
    )


@router.get("/sweeps/{sweep_id}/figures")
def figures(request: Request, served: Served, who: Reader, sweep_id: SweepId) -> HTMLResponse:
    """The figures of the paper, drawn in the page and growing with the sweep."""
    # Imported when it is first asked for, as the routes of the analysis do: it pulls in much.
    from effillm_server.figures import FIGURES

    chosen = [(name, figure.number, figure.title) for name, figure in FIGURES.items()]
    query = request.url.query
    shown = _shown(served, who, sweep_id)
    return page(
        request, who, "figures.html", tab="/figures", figures=chosen, query=f"&{query}" if query else "", **shown
    )


@router.get("/sweeps/{sweep_id}/frontier")
def frontier(request: Request, served: Served, who: Reader, sweep_id: SweepId) -> HTMLResponse:
    """How large a batch runs, per configuration and sequence length."""
    found = results.frontier(served, who, sweep_id)
    return page(request, who, "frontier.html", tab="/frontier", entries=found.items, **_shown(served, who, sweep_id))


@router.get("/sweeps/{sweep_id}/jobs")
async def listed_jobs(
    request: Request,
    served: Served,
    who: Reader,
    sweep_id: SweepId,
    state: JobState | None = None,
    after: After = None,
) -> HTMLResponse:
    """The jobs in the sweep's order, of one state if asked for."""

    def make() -> _Listed:
        live = live_of(served, sweep_id)
        _, found = jobs.page_of(served, EVERYTHING, sweep_id, state, after, JOBS_ON_A_PAGE)
        table = part("jobs_table.html", jobs=found.items, state=state)
        return _Listed(_above(served, EVERYTHING, sweep_id, live), table, found.next)

    made = await served.together.get(("jobs page", sweep_id, state, after), make)
    seen(made.above.sweep, sweep_id, who.viewer)
    return await run_in_threadpool(
        page, request, who, "jobs.html", tab="/jobs", table=made.table, next=made.next, state=state, states=list(JobState),
        **made.above.shown(who),
    )  # fmt: skip


@router.get("/sweeps/{sweep_id}/definition")
def definition(request: Request, served: Served, who: Reader, sweep_id: SweepId) -> HTMLResponse:
    """The definition as it was stored, to be submitted again."""
    shown = _shown(served, who, sweep_id)
    text = words.plain_yaml(shown["sweep"].definition.model_dump(mode="json", exclude_defaults=True))
    return page(request, who, "definition.html", tab="/definition", text=text, **shown)


@router.post("/sweeps/{sweep_id}/cancel")
def cancel(served: Served, who: Submitter, sweep_id: SweepId) -> Response:
    """Cancelled, and back to the sweep."""
    api.cancel(served, who, sweep_id)
    return RedirectResponse(f"/sweeps/{sweep_id}", 303)


@router.post("/sweeps/{sweep_id}/retry")
def retry(served: Served, who: Submitter, sweep_id: SweepId) -> Response:
    """Failed and cancelled jobs put back in line, and back to the sweep."""
    api.retry(served, who, sweep_id)
    return RedirectResponse(f"/sweeps/{sweep_id}", 303)


def _drawn(served: Services, sweep_id: str, choice: Choice) -> tuple[Grid, Markup]:
    """The rectangle's cells as they are now, and the table of them: the same for everybody who may see the sweep."""
    with served.reading() as connection:
        cells = queries.grid(connection, sweep_id, choice.slice)
    drawn = grid(cells, choice.slice, choice.colour)
    return drawn, part("grid.html", grid=drawn, choice=choice, caption=caption(choice.colour))


def live_of(served: Services, sweep_id: str | None = None) -> Live:
    """The stream of a page. Taken before the page's own reads, so that nothing falls between them and the stream."""
    with served.reading() as connection:
        after = queries.last_event_id(connection)
    return Live("/v1/events" + (f"?sweep={sweep_id}" if sweep_id else ""), after, PATIENCE_S[0][1])


@dataclass(frozen=True)
class _Above:
    """What every page of a sweep shows above its own part: the same to all who may see the sweep."""

    sweep: SweepView
    live: Live
    running: Sequence[JobRecord]
    waiting: str | None

    def shown(self, who: Caller) -> dict[str, Any]:
        """As the templates want it, for `who`."""
        far: Progress = progress(self.sweep)
        return {
            "sweep": self.sweep, "progress": far, "bits": parts(self.sweep), "running": self.running,
            "waiting": self.waiting, "live": self.live, "tabs": TABS, "may_change": may_change(who, self.sweep.owner),
        }  # fmt: skip


@dataclass(frozen=True)
class _Listed:
    """A page of a sweep's jobs, drawn, and the cursor of the next."""

    above: _Above
    table: Markup
    next: str | None


def _shown(served: Services, who: Caller, sweep_id: str) -> dict[str, Any]:
    """What every page of a sweep shows above its own part, to `who`."""
    return _above(served, who.viewer, sweep_id, live_of(served, sweep_id)).shown(who)


def _above(served: Services, viewer: Viewer, sweep_id: str, live: Live) -> _Above:
    """The upper part of the sweep's pages, read behind `live`. Raises NotFound."""
    sweep: SweepView = api.view_of(served, viewer, sweep_id)
    live = replace(live, every_s=next(seconds for most, seconds in PATIENCE_S if sweep.total <= most))
    running: Sequence[JobRecord] = ()
    waiting = None
    with served.reading() as connection:
        if sweep.counts.get(JobState.LEASED):
            running = queries.jobs(connection, sweep_id, None, SHOWN_RUNNING, JobState.LEASED)
        elif sweep.counts.get(JobState.PENDING):
            first = queries.jobs(connection, sweep_id, None, 1, JobState.PENDING)
            waiting = queries.explain(connection, first[0].id) if first else None
    return _Above(sweep, live, running, waiting)
