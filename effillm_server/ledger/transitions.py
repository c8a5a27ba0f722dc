"""The end of a lease: job, attempt and device move in one statement, whoever ends it and however."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, RowMapping

from effillm_server.contract.outcome import Cancelled, Exit, Fault, Infeasible, Measured, Outcome
from effillm_server.ledger import results
from effillm_server.ledger.journal import Journal
from effillm_server.ledger.prepared import Statement
from effillm_server.lifecycle import DeviceState, JobState, Next

LEASED_MS = "(extract(epoch FROM leased_at) * 1000)::bigint"
NOW_MS = "(extract(epoch FROM clock_timestamp()) * 1000)::bigint"

# Lock order everywhere: sweep, job, device, then pending jobs with SKIP LOCKED, then counters. The device follows only
# if this very lease is what keeps it; one that was taken over, lost or quarantined since then is left alone.
_END = """
WITH {parts} given AS (
    DELETE FROM lease_device WHERE job_id = :job AND fence = :fence RETURNING device_id, boot_id
), tried AS (
    UPDATE attempt SET ended_at = clock_timestamp(), reported = :reported, outcome = :outcome,
        outcome_digest = :outcome_digest, reason = :attempt_reason, message = :attempt_message, followed_by = :state,
        exit_code = :exit_code, signal = :signal, log_tail = :log_tail, child_id = :child_id, clocks = :clocks,
        code_version = :code_version
    WHERE job_id = :job AND fence = :fence
), vacated AS (
    UPDATE device SET state = CASE WHEN :device_state = 'free' AND draining THEN 'draining' ELSE :device_state END,
        reason = :device_reason, state_since = clock_timestamp()
    FROM given WHERE device.id = given.device_id AND device.boot_id = given.boot_id AND device.state = 'leased'
)
UPDATE job SET state = :state, reason = :reason, message = :message,
    faults = :faults, remeasures = :remeasures, fresh_child = :fresh_child, avoid_device = :avoid_device,
    not_before = CASE WHEN :delay_s > 0 THEN clock_timestamp() + make_interval(secs => :delay_s) END,
    result_fence = CASE WHEN :keeps_result THEN :fence ELSE result_fence END,
    finished_at = CASE WHEN :is_terminal THEN clock_timestamp() END,
    device_id = NULL, boot_id = NULL, leased_at = NULL, lease_expires_at = NULL, lease_ttl_s = NULL
WHERE id = :job AND fence = :fence AND state IN ('leased', 'pending')
RETURNING id
"""
_END_TYPES = {
    "job": "bigint", "fence": "int", "reported": "boolean", "outcome": "text", "outcome_digest": "text",
    "attempt_reason": "text", "attempt_message": "text", "state": "text", "exit_code": "int", "signal": "text",
    "log_tail": "text[]", "child_id": "text", "clocks": "jsonb", "code_version": "text", "device_state": "text",
    "device_reason": "text", "reason": "text", "message": "text", "faults": "smallint", "remeasures": "smallint",
    "fresh_child": "boolean", "avoid_device": "text", "delay_s": "double precision", "keeps_result": "boolean",
    "is_terminal": "boolean",
}  # fmt: skip
_END_UNMEASURED = Statement("end", _END.format(parts=""), **_END_TYPES)
_END_MEASURED = Statement(
    "end_measured", _END.format(parts=f"{results.MEASUREMENT},"), **(_END_TYPES | results.MEASUREMENT_TYPES)
)


@dataclass(frozen=True)
class Held:
    """A job locked by this transaction, as it stood before. `leased_ms` is None unless it is leased."""

    job_id: int
    sweep_id: str
    hardware: str
    state: JobState
    fence: int
    faults: int
    remeasures: int
    device_id: str | None
    leased_ms: int | None
    now_ms: int

    @classmethod
    def of(cls, values: Mapping[str, Any] | RowMapping) -> Held:
        return cls(
            job_id=values["id"], state=JobState(values["state"]),
            **{name: values[name] for name in HELD_COLUMNS},
        )  # fmt: skip


HELD_COLUMNS = ("sweep_id", "hardware", "fence", "faults", "remeasures", "device_id", "leased_ms", "now_ms")
HELD = (
    "j.id, j.sweep_id, j.hardware, j.state, j.fence, j.faults, j.remeasures, j.device_id,"
    f" {LEASED_MS} AS leased_ms, {NOW_MS} AS now_ms"
)


@dataclass(frozen=True)
class Ending:
    """How the attempt ended, as its row keeps it. `reported`: by its own actor, with this digest."""

    device_id: str
    outcome: str
    reason: str | None = None
    message: str | None = None
    reported: bool = False
    digest: str | None = None
    exit: Exit = field(default_factory=Exit)
    child_id: str | None = None
    clocks: str | None = None
    code_version: str | None = None


def describe(outcome: Outcome) -> tuple[str | None, str | None]:
    """Reason and message of an outcome as the attempt keeps them."""
    match outcome:
        case Measured():
            return outcome.verdict, ", ".join(outcome.reasons) or None
        case Infeasible():
            return outcome.reason, outcome.message
        case Fault():
            return outcome.fault, outcome.message
        case Cancelled():
            return None, None


def end_lease(
    c: Connection,
    journal: Journal,
    held: Held,
    ending: Ending,
    step: Next,
    device: tuple[DeviceState, str | None],
    measurement: dict[str, Any] | None = None,
) -> None:
    """Take `step` for a job this transaction has locked, close its attempt and give its device the state `device`.

    `measurement` is stored in the same statement.
    A job that is pending already (its lease had been reaped) takes its late result the same way: the fault that the
    reaping counted is taken back first.
    """
    was_reaped = held.state is JobState.PENDING
    faults = held.faults - was_reaped + step.counts_as_fault
    values = {
        "job": held.job_id, "fence": held.fence, "state": step.state, "reason": step.reason, "message": step.message,
        "faults": faults, "remeasures": held.remeasures + step.counts_as_remeasure, "fresh_child": step.fresh_child,
        "avoid_device": ending.device_id if step.elsewhere else None, "delay_s": step.delay_s,
        "keeps_result": step.keeps_result, "is_terminal": step.state.is_terminal,
        "device_state": device[0], "device_reason": device[1],
        "reported": ending.reported, "outcome": ending.outcome, "outcome_digest": ending.digest,
        "attempt_reason": ending.reason, "attempt_message": ending.message, "exit_code": ending.exit.code,
        "signal": ending.exit.signal, "log_tail": list(ending.exit.log_tail), "child_id": ending.child_id,
        "clocks": ending.clocks, "code_version": ending.code_version,
    }  # fmt: skip
    end = _END_UNMEASURED if measurement is None else _END_MEASURED
    if not end(c, values | (measurement or {})):
        raise RuntimeError(f"job {held.job_id} was locked by this transaction and yet moved under it")
    if held.state is not step.state:
        journal.move(held.sweep_id, held.hardware, held.state, step.state, step.reason)
    if held.leased_ms is not None:
        journal.lease_ended(held.sweep_id, held.hardware, held.leased_ms, held.now_ms)
    journal.event(f"job_{step.state}", held.sweep_id, held.job_id, reason=step.reason, fence=held.fence)
