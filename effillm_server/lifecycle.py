"""The state machine of a job: which transitions exist, and what follows from an outcome. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import assert_never

from effillm_server.contract.outcome import Cancelled, Fault, Infeasible, InfeasibleReason, Measured, Outcome, Verdict

MAX_ATTEMPTS = 3
MAX_REMEASURES = 2
BACKOFF_BASE_S = 2.0
BACKOFF_SPREAD = 0.5


class JobState(StrEnum):
    PENDING = "pending"
    LEASED = "leased"
    MEASURED = "measured"
    INFEASIBLE = "infeasible"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_terminal(self) -> bool:
        return self not in (JobState.PENDING, JobState.LEASED)


class SweepState(StrEnum):
    """Derived from the jobs, never stored."""

    PENDING = "pending"
    RUNNING = "running"
    FINISHED = "finished"
    CANCELLED = "cancelled"


class DeviceState(StrEnum):
    FREE = "free"
    LEASED = "leased"
    RELEASING = "releasing"
    QUARANTINED = "quarantined"
    DRAINING = "draining"
    LOST = "lost"


TRANSITIONS: dict[JobState, frozenset[JobState]] = {
    JobState.PENDING: frozenset({JobState.LEASED, JobState.INFEASIBLE, JobState.CANCELLED}),
    JobState.LEASED: frozenset(
        {JobState.MEASURED, JobState.INFEASIBLE, JobState.FAILED, JobState.CANCELLED, JobState.PENDING}
    ),
    JobState.MEASURED: frozenset({JobState.PENDING}),
    JobState.INFEASIBLE: frozenset(),
    JobState.FAILED: frozenset({JobState.PENDING}),
    JobState.CANCELLED: frozenset({JobState.PENDING}),
}
RETRYABLE = frozenset(
    state for state, targets in TRANSITIONS.items() if state.is_terminal and JobState.PENDING in targets
)


@dataclass(frozen=True)
class History:
    """What a job has behind it when an outcome arrives. `attempts` counts faults, this one not yet included."""

    faults: int = 0
    remeasures: int = 0
    max_attempts: int = MAX_ATTEMPTS
    max_remeasures: int = MAX_REMEASURES


@dataclass(frozen=True)
class Next:
    """What becomes of the job. `keeps_result`: the attempt's measurement is the one that counts."""

    state: JobState
    reason: str | None = None
    message: str | None = None
    delay_s: float = 0.0
    fresh_child: bool = False
    elsewhere: bool = False
    keeps_result: bool = False
    counts_as_fault: bool = False
    counts_as_remeasure: bool = False


MEMORY_REASONS = frozenset({InfeasibleReason.OUT_OF_DEVICE_MEMORY, InfeasibleReason.OUT_OF_HOST_MEMORY})


def after(outcome: Outcome, history: History, jitter: float = 0.5) -> Next:
    """The step that follows `outcome`. `jitter` in 0..1 spreads the backoff by +-50 %."""
    match outcome:
        case Measured(verdict=Verdict.INVALID) if history.remeasures < history.max_remeasures:
            return Next(
                JobState.PENDING, "invalid_verdict", f"measured under bad conditions ({', '.join(outcome.reasons)}), measured again",
                keeps_result=True, counts_as_remeasure=True,
            )  # fmt: skip
        case Measured():
            return Next(JobState.MEASURED, keeps_result=True)
        case Infeasible(reason=reason, warm=True) if reason in MEMORY_REASONS:
            return Next(JobState.PENDING, "confirm_out_of_memory", outcome.message, fresh_child=True)
        case Infeasible():
            return Next(JobState.INFEASIBLE, outcome.reason, outcome.message)
        case Fault():
            return after_fault(outcome.fault, outcome.message, history, jitter)
        case Cancelled():
            return Next(JobState.CANCELLED)
        case _:
            assert_never(outcome)


def after_fault(kind: str, message: str, history: History, jitter: float = 0.5) -> Next:
    """Retry after 2, 4, 8 s +-50 %, elsewhere; `failed` once `max_attempts` faults have happened."""
    faults = history.faults + 1
    if faults >= history.max_attempts:
        return Next(
            JobState.FAILED, kind, f"given up after {faults} attempts; the last one: {message}", counts_as_fault=True
        )
    delay = BACKOFF_BASE_S * 2 ** (faults - 1) * (1 - BACKOFF_SPREAD + 2 * BACKOFF_SPREAD * jitter)
    return Next(JobState.PENDING, kind, message, delay_s=delay, elsewhere=True, counts_as_fault=True)
