"""What a user may do with one job: cancel it, have it measured again."""

from __future__ import annotations

from sqlalchemy import Connection, text

from effillm_server.errors import Conflict, NotFound
from effillm_server.ledger.journal import Journal
from effillm_server.ledger.sweeps import cancel_held, lock_sweep, reopen, settle
from effillm_server.ledger.transitions import HELD, Held
from effillm_server.lifecycle import RETRYABLE, JobState

_LOCK = text(f"SELECT {HELD} FROM job j WHERE id = :job FOR NO KEY UPDATE")
_CANCEL = text("""
UPDATE job SET state = 'cancelled', reason = NULL, message = NULL, not_before = NULL, fresh_child = false,
    avoid_device = NULL, finished_at = clock_timestamp()
WHERE id = :job AND state = 'pending'
""")
_RETRY = text("""
UPDATE job SET state = 'pending', reason = 'retried', message = NULL, not_before = NULL, fresh_child = false,
    avoid_device = NULL, faults = 0, remeasures = 0, finished_at = NULL
WHERE id = :job
""")


def cancel_job(c: Connection, job_id: int) -> JobState:
    """State of the job, `cancelled`; a second time changes nothing. Raises NotFound, Conflict when it has another end."""
    held = _lock(c, job_id)
    if held.state is JobState.CANCELLED:
        return held.state
    if held.state.is_terminal:
        raise Conflict(f"job {job_id} is {held.state} already: only a pending or leased job can be cancelled")
    journal = Journal()
    if held.state is JobState.LEASED:
        cancel_held(c, journal, held)
    else:
        c.execute(_CANCEL, {"job": job_id})
        journal.move(held.sweep_id, held.hardware, held.state, JobState.CANCELLED)
        journal.event("job_cancelled", held.sweep_id, job_id)
    journal.flush(c)
    settle(c, held.sweep_id)
    return JobState.CANCELLED


def retry_job(c: Connection, job_id: int) -> JobState:
    """State of the job, `pending`. Raises NotFound, Conflict for one that has not ended, or ended with an answer for good."""
    sweep_id = c.execute(text("SELECT sweep_id FROM job WHERE id = :job"), {"job": job_id}).scalar()
    if sweep_id is None:
        raise _unknown(job_id)
    lock_sweep(c, sweep_id)
    held = _lock(c, job_id)
    if held.state not in RETRYABLE:
        allowed = ", ".join(sorted(RETRYABLE))
        raise Conflict(f"job {job_id} is {held.state}: only a job that is {allowed} can be measured again")
    c.execute(_RETRY, {"job": job_id})
    reopen(c, sweep_id)
    journal = Journal()
    journal.move(sweep_id, held.hardware, held.state, JobState.PENDING)
    journal.event("job_pending", sweep_id, job_id, reason="retried")
    journal.flush(c)
    return JobState.PENDING


def _lock(c: Connection, job_id: int) -> Held:
    row = c.execute(_LOCK, {"job": job_id}).first()
    if row is None:
        raise _unknown(job_id)
    return Held.of(row._mapping)


def _unknown(job_id: int) -> NotFound:
    return NotFound(f"there is no job {job_id}: GET /v1/sweeps/{{id}}/jobs lists a sweep's jobs")
