"""Routes of sweeps: submit, preview, list, look at, cancel, retry."""

from __future__ import annotations

from typing import Annotated

import sqlalchemy
from fastapi import APIRouter, Depends, Header, Request, Response

from effillm_server import expand
from effillm_server.api import audit, examples, pages
from effillm_server.api.auth import Caller, Reader, Submitter, must_change
from effillm_server.api.definition import submitted
from effillm_server.api.documented import DEFINITION_BODY, LINKED, problems, with_header
from effillm_server.api.services import EVERYTHING, Served, Services, SweepId, seen, sweep_of
from effillm_server.api.shown import Shown
from effillm_server.api.unchanged import why
from effillm_server.api.views import ChangedView, PageView, PreviewView, SweepSummary, SweepView
from effillm_server.catalog import ModelFacts
from effillm_server.catalog.resolve import resolve_all
from effillm_server.contract.sweep import SweepDefinition
from effillm_server.errors import Conflict, Unavailable
from effillm_server.ledger import queries, queue
from effillm_server.ledger.enqueue import NewSweep
from effillm_server.records import SweepRecord, Viewer

router = APIRouter(prefix="/v1/sweeps", tags=["sweeps"])

Submitted = Annotated[SweepDefinition, Depends(submitted)]
IdempotencyKey = Annotated[
    str | None,
    Header(
        min_length=1,
        max_length=200,
        pattern=r"^[!-~]+$",
        description="the same key and definition give the same sweep, however often they are sent",
        examples=[examples.IDEMPOTENCY_KEY],
    ),
]


@router.post(
    "",
    summary="Submit a sweep",
    status_code=201,
    openapi_extra=DEFINITION_BODY,
    responses={
        **problems(409),
        201: with_header("Location", "address of the sweep"),
        200: {
            "model": SweepView,
            "description": "this key stored this sweep before",
            **with_header("Location", "address of the sweep"),
        },
    },
)
def submit(
    served: Served,
    who: Submitter,
    definition: Submitted,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> SweepView:
    """Stores the sweep and all its jobs, or nothing. Cells that cannot run become rows that say why."""
    sweep = _known(served, who.owner, idempotency_key, definition)
    if sweep is not None:
        response.status_code = 200
    else:
        _check(served, definition)
        new = _planned(served, who.owner, idempotency_key, definition)
        sweep = _store(served, who, new)
        if sweep.id != new.id:
            # The same request was under way twice; the other one stored it.
            response.status_code = 200
    response.headers["Location"] = f"/v1/sweeps/{sweep.id}"
    return SweepView.of(sweep)


@router.post(
    "/preview",
    summary="See what a sweep would be, nothing stored",
    openapi_extra=DEFINITION_BODY,
    responses=problems(),
)
def preview(served: Served, who: Submitter, definition: Submitted) -> PreviewView:
    """Counts the cells, and those that cannot run by reason, with the first of them as examples."""
    _check(served, definition)
    models = _models(served, definition)
    with served.reading() as connection:
        present = queries.known_hardware(connection)
    missing = sorted(set(definition.hardware) - present)
    return PreviewView.of(expand.preview(definition, models, served.catalog.hardware), missing)


@router.get(
    "", summary="List the sweeps, newest first", response_model=PageView[SweepSummary], responses=problems() | LINKED
)
async def listing(
    request: Request, served: Served, who: Reader, after: pages.Cursor = None, limit: pages.Limit = 50
) -> Response:
    """Pages follow by the Link header, or by `next` as `after`."""
    page = await served.together.get(
        ("sweeps", after, limit, who.viewer), lambda: Shown.of(page_of(served, who, after, limit))
    )
    return page.answer(request)


@router.get(
    "/{sweep_id}", summary="A sweep, its progress and definition", response_model=SweepView, responses=problems(404)
)
async def look(request: Request, served: Served, who: Reader, sweep_id: SweepId) -> Response:
    """Counts by state come from counters, so that this stays cheap however large the sweep is."""
    sweep, shown = await served.together.get(("sweep", sweep_id), lambda: _shown(served, sweep_id))
    seen(sweep, sweep_id, who.viewer)
    return shown.answer(request)


@router.post("/{sweep_id}/cancel", summary="Cancel what is not finished", responses=problems(404, 409))
def cancel(served: Served, who: Submitter, sweep_id: SweepId) -> ChangedView:
    """Pending jobs are cancelled at once, running ones ended within seconds; results stay. Asked again it changes nothing."""
    with served.writing() as connection:
        must_change(who, sweep_of(connection, sweep_id, who.viewer).owner)
        changed = queue.cancel_sweep(connection, sweep_id)
        _record(connection, who, "sweep.cancel", sweep_id, changed)
    return _changed(served, who, "sweep.cancel", sweep_id, changed)


@router.post("/{sweep_id}/retry", summary="Run failed and cancelled jobs again", responses=problems(404, 409))
def retry(served: Served, who: Submitter, sweep_id: SweepId) -> ChangedView:
    """Failed and cancelled jobs become pending; measured and infeasible ones keep their answer."""
    with served.writing() as connection:
        must_change(who, sweep_of(connection, sweep_id, who.viewer).owner)
        changed = queue.retry_sweep(connection, sweep_id)
        _record(connection, who, "sweep.retry", sweep_id, changed)
    return _changed(served, who, "sweep.retry", sweep_id, changed)


def page_of(served: Services, who: Caller, after: str | None, limit: int) -> PageView[SweepSummary]:
    """The sweeps behind the cursor `after`, newest first."""
    with served.reading() as connection:
        sweeps = queries.sweeps(connection, pages.decode_text("sweeps", after), limit + 1, who.viewer)
    following = pages.encode("sweeps", sweeps[limit - 1].id) if len(sweeps) > limit else None
    return PageView(items=[SweepSummary.of(sweep) for sweep in sweeps[:limit]], next=following)


def view_of(served: Services, viewer: Viewer, sweep_id: str) -> SweepView:
    """The sweep as it stands. Raises NotFound."""
    with served.reading() as connection:
        return SweepView.of(sweep_of(connection, sweep_id, viewer))


def _shown(served: Services, sweep_id: str) -> tuple[SweepRecord, Shown]:
    """The sweep, and what all who may see it are shown. Raises NotFound."""
    with served.reading() as connection:
        sweep = sweep_of(connection, sweep_id, EVERYTHING)
    return sweep, Shown.of(SweepView.of(sweep))


def _record(connection: sqlalchemy.Connection, who: Caller, action: str, sweep_id: str, changed: int) -> None:
    if changed:
        audit.record(connection, who, action, sweep_id, changed=changed)


def _changed(served: Services, who: Caller, action: str, sweep_id: str, changed: int) -> ChangedView:
    """The answer; a request that changed nothing is counted and told why."""
    with served.reading() as connection:
        sweep = sweep_of(connection, sweep_id, who.viewer)
    if changed:
        return ChangedView(changed=changed, sweep=SweepSummary.of(sweep))
    served.tally.unchanged.note(action)
    return ChangedView(changed=0, sweep=SweepSummary.of(sweep), note=why(action, sweep.state))


def _check(served: Services, definition: SweepDefinition) -> None:
    with served.reading() as connection:
        registered = queries.known_hardware(connection)
    hardware = {*served.catalog.hardware, *registered}
    expand.check(definition, hardware, served.catalog.workloads.keys(), served.settings.max_jobs)


def _known(served: Services, owner: str | None, key: str | None, definition: SweepDefinition) -> SweepRecord | None:
    """The sweep that this key stored before. Raises Conflict when it was another one."""
    if key is None:
        return None
    with served.reading() as connection:
        known = queries.sweep_by_key(connection, owner, key)
    if known is not None and known.definition != definition:
        raise Conflict(
            f"the idempotency key {key!r} belongs to sweep {known.id}, whose definition is another: "
            "use a new key for a new sweep"
        )
    return known


def _models(served: Services, definition: SweepDefinition) -> dict[str, ModelFacts]:
    """The models with what is known of them. Outside any transaction: the hub may take seconds to answer."""
    settings = served.settings
    return resolve_all(definition.models, settings.model_root, served.models, settings.allow_models)


def _planned(served: Services, owner: str | None, key: str | None, definition: SweepDefinition) -> NewSweep:
    """The sweep with its models resolved."""
    models = _models(served, definition)
    hardware = {name: served.catalog.hardware[name] for name in definition.hardware if name in served.catalog.hardware}
    facts = {
        "models": {name: model.model_dump(mode="json") for name, model in models.items()},
        "hardware": {name: facts.model_dump(mode="json") for name, facts in hardware.items()},
    }
    return NewSweep(queue.new_sweep_id(), definition, owner, key, facts)


def _store(served: Services, who: Caller, sweep: NewSweep) -> SweepRecord:
    models = {name: ModelFacts.model_validate(facts) for name, facts in sweep.facts["models"].items()}
    planned = expand.expand(sweep.definition, models, served.catalog.hardware)
    with served.writing() as connection:
        jobs = queue.enqueue(connection, sweep, planned)
        if queries.sweep(connection, sweep.id) is not None:
            audit.record(connection, who, "sweep.submit", sweep.id, name=sweep.definition.name, jobs=jobs)
    with served.reading() as connection:
        stored = queries.sweep(connection, sweep.id)
        if stored is None and sweep.idempotency_key is not None:
            stored = queries.sweep_by_key(connection, sweep.owner, sweep.idempotency_key)
    if stored is None:
        raise Unavailable("the sweep was stored and is gone again; submit it once more")
    return stored
