"""What the ledger hands out and the analysis takes in: frozen values, so that no table row leaves the ledger."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from effillm_server.contract.job import Cell, Lease
from effillm_server.contract.sweep import SweepDefinition
from effillm_server.lifecycle import DeviceState, JobState, SweepState


@dataclass(frozen=True)
class SweepRecord:
    """A sweep with its progress. `counts` maps every job state to a number; `reasons` every infeasible reason."""

    id: str
    name: str
    definition: SweepDefinition
    priority: int
    owner: str | None
    visibility: str
    created_at: datetime
    cancelled_at: datetime | None
    state: SweepState
    total: int
    counts: dict[JobState, int]
    reasons: dict[str, int]
    finished_at: datetime | None = None
    device_seconds: float = 0.0


@dataclass(frozen=True)
class JobRecord:
    """A job as it stands. `reason`/`message` say why it is where it is; `verdict` belongs to the result that counts."""

    id: int
    sweep_id: str
    ordinal: int
    cell: Cell
    digest: str
    state: JobState
    reason: str | None
    message: str | None
    implied_by: int | None
    faults: int
    remeasures: int
    fence: int
    result_fence: int | None
    device_id: str | None
    not_before: datetime | None
    created_at: datetime
    finished_at: datetime | None
    verdict: str | None = None


@dataclass(frozen=True)
class AttemptRecord:
    """One lease of a job and how it ended."""

    job_id: int
    fence: int
    device_id: str
    node: str | None
    boot_id: str
    started_at: datetime
    ended_at: datetime | None
    outcome: str | None
    reason: str | None
    message: str | None
    exit_code: int | None
    signal: str | None
    log_tail: tuple[str, ...]
    code_version: str | None


@dataclass(frozen=True)
class ResultRecord:
    """The measurement that counts for a job, raw. `measurement` is the stored Measured outcome less its samples."""

    job: JobRecord
    device_id: str | None = None
    fence: int | None = None
    fingerprint_digest: str | None = None
    measurement: dict[str, Any] | None = None
    samples: tuple[dict[str, Any], ...] = ()
    child: dict[str, Any] | None = None


@dataclass(frozen=True)
class DeviceRecord:
    """A device as the lab sees it. `reason` says why it is not free; `job_id` and `load_group` what it is doing."""

    id: str
    hardware_class: str
    node: str
    memory_bytes: int
    declared: bool
    state: DeviceState
    reason: str | None
    boot_id: str | None
    last_seen: datetime | None
    fingerprint_digest: str | None
    job_id: int | None
    load_group: str | None
    ceiling: dict[str, Any] | None
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class EventRecord:
    """A line of the event stream; `id` grows, so a stream can be resumed behind it. `owner` and `visibility` are its sweep's."""

    id: int
    sweep_id: str | None
    job_id: int | None
    kind: str
    at: datetime
    data: dict[str, Any]
    owner: str | None = None
    visibility: str | None = None


@dataclass(frozen=True)
class Viewer:
    """For whose eyes something is read: what is private to another owner is not there for them, unless they are an admin."""

    owner: str | None
    is_admin: bool = False

    def sees(self, visibility: str | None, owner: str | None) -> bool:
        """Whether a sweep of this visibility and owner, or what belongs to it, exists for the viewer."""
        return self.is_admin or visibility != "private" or (owner is not None and owner == self.owner)


@dataclass(frozen=True)
class KeyRecord:
    """An API key, which nobody can read back: `prefix` are its first characters, `scopes` what it opens."""

    id: int
    owner: str
    prefix: str
    scopes: tuple[str, ...]
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None


@dataclass(frozen=True)
class SessionRecord:
    """A browser that is signed in; `key` is None for the local admin of a server that asks for no keys."""

    key: KeyRecord | None
    expires_at: datetime


@dataclass(frozen=True)
class AuditRecord:
    """A change and who made it; `actor` is None for the local admin."""

    id: int
    at: datetime
    actor: str | None
    action: str
    subject: str | None
    request_id: str | None
    data: dict[str, Any]


@dataclass(frozen=True)
class Finished:
    """What `queue.finish` did: whether the outcome was accepted, the state that followed, and the next lease if asked for."""

    accepted: bool
    why_not: str | None = None
    state: JobState | None = None
    next: Lease | None = None


@dataclass(frozen=True)
class Renewal:
    """Leases that still stand, with whether their job is to be cancelled, and those that are lost."""

    kept: tuple[tuple[int, int], ...]
    to_cancel: tuple[tuple[int, int], ...]
    lost: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class FrontierRecord:
    """How far one configuration runs at one sequence length: the largest batch measured, the smallest that cannot run and why."""

    model: str
    weights: str
    quantization: str
    dtype: str
    engine: str
    runtime: str
    hardware: str
    workload: str
    generate_tokens: int
    sequence_length: int | None
    largest_batch_size: int | None
    smallest_infeasible_batch_size: int | None
    reason: str | None


@dataclass(frozen=True)
class Counts:
    """Totals of the whole ledger, for metrics."""

    jobs: dict[JobState, int]
    devices: dict[DeviceState, int]
    rejected_outcomes: int
    rejected_renewals: int
    last_event_id: int
