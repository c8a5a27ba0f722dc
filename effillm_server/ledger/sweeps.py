"""Transitions of a whole sweep: cancelled, retried, finished."""

from __future__ import annotations

from sqlalchemy import Connection, text

from effillm_server.errors import NotFound
from effillm_server.ledger.journal import Journal
from effillm_server.ledger.transitions import HELD, Ending, Held, end_lease
from effillm_server.lifecycle import DeviceState, JobState, Next

# Jobs moved per statement, so that a sweep of a million fits into the statement time-out.
CHUNK = 20_000

_LOCK_SWEEP = "SELECT id FROM sweep WHERE id = :sweep FOR NO KEY UPDATE"
_LEASED = text(f"SELECT {HELD} FROM job j WHERE sweep_id = :sweep AND state = 'leased' ORDER BY id FOR NO KEY UPDATE")
_MOVE = """
WITH picked AS MATERIALIZED (
    SELECT id, state FROM job WHERE sweep_id = :sweep AND state = ANY(:from)
    ORDER BY ordinal LIMIT :chunk FOR NO KEY UPDATE
), moved AS (
    UPDATE job SET {changes} FROM picked WHERE job.id = picked.id RETURNING job.hardware, picked.state AS was
)
SELECT hardware, was, count(*) AS jobs FROM moved GROUP BY hardware, was
"""
_CANCEL_PENDING = text(_MOVE.format(changes="""
    state = 'cancelled', reason = NULL, message = NULL, not_before = NULL, fresh_child = false, avoid_device = NULL,
    finished_at = clock_timestamp()
"""))  # fmt: skip
_RETRY = text(_MOVE.format(changes="""
    state = 'pending', reason = 'retried', message = NULL, not_before = NULL, fresh_child = false, avoid_device = NULL,
    faults = 0, remeasures = 0, finished_at = NULL
"""))  # fmt: skip
_OPEN = "SELECT coalesce(sum(pending + leased), 0) FROM sweep_counter WHERE sweep_id = :sweep"
# Counters are read in a statement of its own after the sweep is locked: a retry that came in between is then seen.
_LOCK_UNFINISHED = text("""
SELECT id FROM sweep WHERE id = :sweep AND finished_at IS NULL FOR NO KEY UPDATE SKIP LOCKED
""")
_AT_END = text("""
SELECT s.id FROM sweep s WHERE s.finished_at IS NULL
    AND NOT EXISTS (SELECT FROM sweep_counter k WHERE k.sweep_id = s.id HAVING sum(k.pending + k.leased) > 0)
""")


def cancel_sweep(c: Connection, sweep_id: str) -> int:
    """Number of jobs cancelled: all that were pending or leased. Devices that ran some are `releasing`. Raises NotFound.

    A sweep that has none left stays as it is: what has finished is not cancelled afterwards.
    """
    lock_sweep(c, sweep_id)
    journal = Journal()
    cancelled = 0
    # A lease may be granted or given back while the pending ones are walked through, so until neither is left.
    while True:
        moved = _cancel_leased(c, journal, sweep_id) + _move(c, journal, sweep_id, _CANCEL_PENDING, ["pending"])
        if moved == 0:
            break
        cancelled += moved
    if cancelled:
        c.execute(text("UPDATE sweep SET cancelled_at = clock_timestamp() WHERE id = :sweep"), {"sweep": sweep_id})
        journal.event("sweep_cancelled", sweep_id, jobs=cancelled)
    journal.flush(c)
    settle(c, sweep_id)
    return cancelled


def retry_sweep(c: Connection, sweep_id: str) -> int:
    """Number of failed and cancelled jobs that are pending again, with their attempts counted anew. Raises NotFound."""
    lock_sweep(c, sweep_id)
    journal = Journal()
    retried = 0
    while moved := _move(c, journal, sweep_id, _RETRY, ["failed", "cancelled"]):
        retried += moved
    if retried:
        reopen(c, sweep_id)
        journal.event("sweep_retried", sweep_id, jobs=retried)
    journal.flush(c)
    return retried


def settle(c: Connection, sweep_id: str) -> bool:
    """Whether the sweep has just been marked finished, because none of its jobs is pending or leased any more."""
    if c.execute(text(_OPEN), {"sweep": sweep_id}).scalar_one() != 0:
        return False
    if c.execute(_LOCK_UNFINISHED, {"sweep": sweep_id}).first() is None:
        return False
    if c.execute(text(_OPEN), {"sweep": sweep_id}).scalar_one() != 0:
        return False
    c.execute(text("UPDATE sweep SET finished_at = clock_timestamp() WHERE id = :sweep"), {"sweep": sweep_id})
    journal = Journal()
    journal.event("sweep_finished", sweep_id)
    journal.flush(c)
    return True


def settle_all(c: Connection) -> list[str]:
    """Sweeps marked finished now: two last jobs that finish at once each see the other one still open."""
    return [sweep_id for sweep_id in c.execute(_AT_END).scalars().all() if settle(c, sweep_id)]


def lock_sweep(c: Connection, sweep_id: str) -> None:
    """Lock the sweep's row. Raises NotFound."""
    if c.execute(text(_LOCK_SWEEP), {"sweep": sweep_id}).first() is None:
        raise NotFound(f"there is no sweep {sweep_id!r}: `effillm ls` shows those there are")


def reopen(c: Connection, sweep_id: str) -> None:
    """The sweep has pending jobs again."""
    c.execute(text("UPDATE sweep SET cancelled_at = NULL, finished_at = NULL WHERE id = :sweep"), {"sweep": sweep_id})


def cancel_held(c: Connection, journal: Journal, held: Held) -> None:
    """Cancel a leased job this transaction has locked; its device is `releasing` until its actor says it is clear."""
    device_id = held.device_id or ""
    end_lease(
        c, journal, held, Ending(device_id, "cancelled"), Next(JobState.CANCELLED),
        (DeviceState.RELEASING, "its job was cancelled, the child is being ended"),
    )  # fmt: skip


def _cancel_leased(c: Connection, journal: Journal, sweep_id: str) -> int:
    leased = [Held.of(row) for row in c.execute(_LEASED, {"sweep": sweep_id}).mappings()]
    for held in leased:
        cancel_held(c, journal, held)
    return len(leased)


def _move(c: Connection, journal: Journal, sweep_id: str, statement: object, states: list[str]) -> int:
    values = {"sweep": sweep_id, "from": states, "chunk": CHUNK}
    after = JobState.CANCELLED if statement is _CANCEL_PENDING else JobState.PENDING
    total = 0
    for row in c.execute(statement, values):  # type: ignore[call-overload]
        journal.move(sweep_id, row.hardware, JobState(row.was), after, jobs=row.jobs)
        total += row.jobs
    return total
