"""Routes of jobs: a sweep's pages of them, one with all that is known about it, cancel, retry."""

from __future__ import annotations

from typing import Annotated

import sqlalchemy
from fastapi import APIRouter, Query, Request, Response

from effillm_server.api import audit, pages
from effillm_server.api.auth import Caller, Reader, Submitter, must_change
from effillm_server.api.documented import LINKED, problems
from effillm_server.api.partners import Beside
from effillm_server.api.services import EVERYTHING, JobId, Served, Services, SweepId, job_of, seen, sweep_of
from effillm_server.api.shown import Shown
from effillm_server.api.views import AttemptView, JobDetail, JobView, PageView, ResultView
from effillm_server.ledger import queries, queue
from effillm_server.lifecycle import JobState
from effillm_server.records import JobRecord, SweepRecord, Viewer

router = APIRouter(prefix="/v1", tags=["jobs"])

StateFilter = Annotated[JobState | None, Query(description="only jobs in this state", examples=["pending"])]


@router.get(
    "/sweeps/{sweep_id}/jobs",
    summary="The jobs of a sweep, in its order",
    response_model=PageView[JobView],
    responses=problems(404) | LINKED,
)
async def of_sweep(
    request: Request,
    served: Served,
    who: Reader,
    sweep_id: SweepId,
    state: StateFilter = None,
    after: pages.Cursor = None,
    limit: pages.Limit = 100,
) -> Response:
    """Pages follow by the Link header, or by `next` as `after`."""

    def make() -> tuple[SweepRecord, Shown]:
        sweep, page = page_of(served, EVERYTHING, sweep_id, state, after, limit)
        return sweep, Shown.of(page)

    sweep, shown = await served.together.get(("jobs", sweep_id, state, after, limit), make)
    seen(sweep, sweep_id, who.viewer)
    return shown.answer(request)


@router.get(
    "/jobs/{job_id}", summary="A job with its attempts, log, raw samples and explanation", responses=problems(404)
)
def look(served: Served, who: Reader, job_id: JobId) -> JobDetail:
    """`explanation` says in words why the job is where it is; `attempts` carry the last lines of each log."""
    with served.reading() as connection:
        job = job_of(connection, job_id, who.viewer)
        explanation = queries.explain(connection, job_id)
        attempts = queries.attempts(connection, job_id)
        result = queries.result(connection, job_id)
        beside = Beside.of(connection, result) if result else None
    shown = ResultView.of(beside.result, beside.row()) if beside else None
    return JobDetail.of(
        job, explanation=explanation, attempts=[AttemptView.of(attempt) for attempt in attempts], result=shown
    )


@router.post("/jobs/{job_id}/cancel", summary="Cancel a job", responses=problems(404, 409))
def cancel(served: Served, who: Submitter, job_id: JobId) -> JobView:
    """A pending job is cancelled at once, a running one ended within seconds; one that is cancelled already stays so."""
    with served.tally.unchanged.refusals("job.cancel"), served.writing() as connection:
        before = _changeable(connection, who, job_id)
        queue.cancel_job(connection, job_id)
        if before.state is JobState.CANCELLED:
            served.tally.unchanged.note("job.cancel")
        else:
            audit.record(connection, who, "job.cancel", str(job_id))
        return JobView.of(job_of(connection, job_id, who.viewer))


@router.post("/jobs/{job_id}/retry", summary="Run a job again", responses=problems(404, 409))
def retry(served: Served, who: Submitter, job_id: JobId) -> JobView:
    """A measured, failed or cancelled job becomes pending; its earlier results are kept. Any other is refused."""
    with served.tally.unchanged.refusals("job.retry"), served.writing() as connection:
        _changeable(connection, who, job_id)
        queue.retry_job(connection, job_id)
        audit.record(connection, who, "job.retry", str(job_id))
        return JobView.of(job_of(connection, job_id, who.viewer))


def page_of(
    served: Services, viewer: Viewer, sweep_id: str, state: JobState | None, after: str | None, limit: int
) -> tuple[SweepRecord, PageView[JobView]]:
    """The sweep and its jobs behind the cursor `after`. Raises NotFound."""
    behind = pages.decode_int("jobs", after, first=-1)
    with served.reading() as connection:
        sweep = sweep_of(connection, sweep_id, viewer)
        jobs = queries.jobs(connection, sweep_id, behind, limit + 1, state)
    following = pages.encode("jobs", jobs[limit - 1].ordinal) if len(jobs) > limit else None
    return sweep, PageView(items=[JobView.of(job) for job in jobs[:limit]], next=following)


def _changeable(connection: sqlalchemy.Connection, who: Caller, job_id: int) -> JobRecord:
    """The job as it stands. Raises NotFound for one that does not exist for the caller, 403 for one of somebody else."""
    found = job_of(connection, job_id, who.viewer)
    must_change(who, sweep_of(connection, found.sweep_id, who.viewer).owner)
    return found
