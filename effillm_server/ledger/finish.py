"""The outcome of an attempt, accepted once from the holder of the fence; anything else is refused and kept."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from sqlalchemy import Connection, text

from effillm_server.contract.outcome import Cancelled, Exit, Infeasible, InfeasibleReason, Measured, Outcome
from effillm_server.ledger.claim import LeaseRequest, lease_in
from effillm_server.ledger.implied import imply
from effillm_server.ledger.journal import Journal
from effillm_server.ledger.prepared import Statement
from effillm_server.ledger.results import measurement_values, store_child
from effillm_server.ledger.sweeps import settle
from effillm_server.ledger.transitions import HELD, Ending, Held, describe, end_lease
from effillm_server.lifecycle import MEMORY_REASONS, DeviceState, History, JobState, after
from effillm_server.records import Finished

_JOB = Statement(
    "finish_job",
    f"""
SELECT {HELD}, j.batch_size, d.declared, f.record->'software'->>'code_version' AS code_version
FROM job j LEFT JOIN device d ON d.id = :device LEFT JOIN fingerprint f ON f.digest = d.fingerprint_digest
WHERE j.id = :job FOR NO KEY UPDATE OF j
""",
    job="bigint",
    device="text",
)
# Read after the job is locked: in the statement that waited for the lock it would still be as it was before.
_ATTEMPT = text("""
SELECT device_id, boot_id, reported, outcome, outcome_digest, followed_by FROM attempt
WHERE job_id = :job AND fence = :fence
""")
_NOTE_EXIT = text("""
UPDATE attempt SET reported = true, outcome_digest = :digest, exit_code = :exit_code, signal = :signal,
    log_tail = CAST(:log_tail AS text[])
WHERE job_id = :job AND fence = :fence
""")
_REJECT = text("""
INSERT INTO rejected_outcome AS r (job_id, fence, device_id, boot_id, outcome_digest, outcome, why)
VALUES (:job, :fence, :device, :boot, :digest, CAST(:outcome AS jsonb), :why)
ON CONFLICT (job_id, fence, device_id, boot_id, outcome_digest)
    DO UPDATE SET times = r.times + 1, received_at = clock_timestamp()
""")


def finish(
    c: Connection, device_id: str, boot_id: str, job_id: int, fence: int, outcome: Outcome, jitter: float = 0.5,
    next_lease: LeaseRequest | None = None,
) -> Finished:  # fmt: skip
    """What became of the job, and the device's next lease if one was asked for, all in the caller's transaction.

    Accepted when the fence is the job's last and the job is leased, or reaped and not yet leased again. The same
    outcome sent again gets the same answer; any other is kept in `rejected_outcome`.
    """
    journal = Journal(device_id)
    text_of_outcome = outcome.model_dump_json()
    writer = {
        "job": job_id, "fence": fence, "device": device_id, "boot": boot_id,
        "digest": hashlib.sha256(text_of_outcome.encode()).hexdigest(),
    }  # fmt: skip
    row = next(iter(_JOB(c, writer)), None)
    state, why_not, sweep_id = _judge(c, row, writer, outcome)
    if why_not is not None:
        c.execute(_REJECT, writer | {"outcome": text_of_outcome, "why": why_not})
        journal.event("outcome_rejected", sweep_id, job_id, device=device_id, fence=fence, why=why_not)
    elif state is None and row is not None:
        state = _accept(c, journal, Held.of(row), row, writer, outcome, jitter)
    granted = None if next_lease is None else lease_in(c, journal, next_lease)
    journal.flush(c)
    # While the device goes on with the same sweep, that sweep is not at its end.
    if state is not None and state.is_terminal and sweep_id and (granted is None or granted.sweep_id != sweep_id):
        settle(c, sweep_id)
    return Finished(accepted=why_not is None, why_not=why_not, state=state, next=granted)


def _judge(
    c: Connection, row: dict[str, Any] | None, writer: dict[str, Any], outcome: Outcome
) -> tuple[JobState | None, str | None, str | None]:
    """(state that followed if this was dealt with before, why it is refused, sweep). Neither of the first two: accept."""
    if row is None:
        return None, f"there is no job {writer['job']}", None
    held = Held.of(row)
    if held.state is JobState.LEASED and held.fence == writer["fence"] and held.device_id == writer["device"]:
        return None, None, held.sweep_id
    attempt = c.execute(_ATTEMPT, {"job": writer["job"], "fence": writer["fence"]}).mappings().first()
    if attempt is None or attempt["device_id"] != writer["device"]:
        return (
            None,
            f"device {writer['device']} never held job {writer['job']} under fence {writer['fence']}",
            held.sweep_id,
        )
    followed_by = None if attempt["followed_by"] is None else JobState(attempt["followed_by"])
    if attempt["reported"]:
        if attempt["outcome_digest"] == writer["digest"]:
            return followed_by, None, held.sweep_id
        return None, f"fence {writer['fence']} has reported another outcome ({attempt['outcome']})", held.sweep_id
    if attempt["outcome"] == "cancelled":
        if not isinstance(outcome, Cancelled):
            return None, "the job was cancelled while this attempt ran", held.sweep_id
        exit_ = outcome.exit
        c.execute(
            _NOTE_EXIT,
            writer | {"exit_code": exit_.code, "signal": exit_.signal, "log_tail": list(exit_.log_tail)},
        )
        return followed_by, None, held.sweep_id
    if held.fence != writer["fence"]:
        return (
            None,
            f"superseded: the job is at fence {held.fence}, this outcome belongs to {writer['fence']}",
            held.sweep_id,
        )
    if held.state is not JobState.PENDING:
        return None, f"the lease had expired and the job is {held.state} since", held.sweep_id
    return None, None, held.sweep_id


def _accept(
    c: Connection,
    journal: Journal,
    held: Held,
    row: dict[str, Any],
    writer: dict[str, Any],
    outcome: Outcome,
    jitter: float,
) -> JobState:
    was_reaped = held.state is JobState.PENDING
    step = after(outcome, History(held.faults - was_reaped, held.remeasures), jitter)
    child, measurement, clocks, code_version = outcome.child, None, None, row["code_version"]
    if isinstance(outcome, Measured):
        measurement = measurement_values(
            writer["device"], writer["boot"], row["batch_size"], outcome, declared=row["declared"]
        )
        clocks, code_version = outcome.details.get("clocks"), outcome.fingerprint.software.code_version
    elif child is not None:
        store_child(c, writer["device"], writer["boot"], child)
    reason, message = describe(outcome)
    ending = Ending(
        writer["device"], outcome.kind, reason, message, reported=True, digest=writer["digest"],
        exit=Exit() if isinstance(outcome, Measured) else outcome.exit,
        child_id=None if child is None else child.id, clocks=None if clocks is None else json.dumps(clocks), code_version=code_version,
    )  # fmt: skip
    # A cancelled child may still be on its way out: its device is free when its actor has attested.
    device_state = DeviceState.RELEASING if isinstance(outcome, Cancelled) else DeviceState.FREE
    end_lease(c, journal, held, ending, step, (device_state, None), measurement)
    if step.state is JobState.INFEASIBLE and isinstance(outcome, Infeasible) and outcome.reason in MEMORY_REASONS:
        imply(c, journal, held.sweep_id, held.job_id, writer["device"], InfeasibleReason(outcome.reason))
    return step.state
