"""What the API answers: one model per answer, built from the ledger's records, with an example each."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Generic, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from effillm_server.api import examples
from effillm_server.contract.job import Cell
from effillm_server.contract.sweep import SweepDefinition
from effillm_server.expand import PlannedCell, Preview
from effillm_server.lifecycle import DeviceState, JobState, SweepState
from effillm_server.records import (
    AttemptRecord,
    DeviceRecord,
    EventRecord,
    FrontierRecord,
    JobRecord,
    ResultRecord,
    SweepRecord,
)

T = TypeVar("T")


def _example(value: dict[str, Any]) -> ConfigDict:
    return ConfigDict(json_schema_extra={"examples": [value]})


class PageView(BaseModel, Generic[T]):
    """One page of a list. `next` goes into `after` to have the following page; null on the last one."""

    items: list[T]
    next: str | None = None


class SweepSummary(BaseModel):
    """A sweep with its progress. `counts` has every job state, `reasons` every reason of infeasible jobs."""

    model_config = _example(examples.SWEEP_SUMMARY)

    id: str
    name: str
    state: SweepState
    priority: int
    owner: str | None
    visibility: str
    created_at: datetime
    finished_at: datetime | None
    cancelled_at: datetime | None
    total: int
    counts: dict[JobState, int]
    reasons: dict[str, int]
    device_seconds: float

    @classmethod
    def of(cls, sweep: SweepRecord) -> Self:
        return cls.model_validate(_fields(cls, sweep))


class SweepView(SweepSummary):
    """A sweep with its progress and its definition, defaults filled in."""

    model_config = _example(examples.SWEEP)

    definition: SweepDefinition


class PlannedView(BaseModel):
    """A cell of a preview and why it cannot run."""

    ordinal: int
    cell: Cell
    reason: str | None
    message: str | None

    @classmethod
    def of(cls, planned: PlannedCell) -> PlannedView:
        reason, message = planned.infeasible or (None, None)
        return cls(ordinal=planned.ordinal, cell=planned.cell, reason=reason, message=message)


class PreviewView(BaseModel):
    """What a sweep would store: `total` = `pending` + all of `infeasible`; `excluded` cells are in none of them."""

    model_config = _example(examples.PREVIEW)

    total: int
    pending: int
    excluded: int
    infeasible: dict[str, int]
    examples: list[PlannedView] = Field(description="the first infeasible cells")
    missing_hardware: list[str] = Field(description="hardware classes that no device of the lab has now")

    @classmethod
    def of(cls, preview: Preview, missing_hardware: list[str]) -> PreviewView:
        return cls(
            total=preview.total,
            pending=preview.pending,
            excluded=preview.excluded,
            infeasible={str(reason): count for reason, count in preview.infeasible.items()},
            examples=[PlannedView.of(planned) for planned in preview.examples],
            missing_hardware=missing_hardware,
        )


class JobView(BaseModel):
    """A job as it stands. `reason` and `message` say why it is where it is."""

    model_config = _example(examples.JOB)

    id: int
    sweep: str
    ordinal: int
    cell: Cell
    digest: str
    state: JobState
    reason: str | None
    message: str | None
    verdict: str | None
    implied_by: int | None
    faults: int
    remeasures: int
    fence: int
    result_fence: int | None
    device: str | None
    not_before: datetime | None
    created_at: datetime
    finished_at: datetime | None

    @classmethod
    def of(cls, job: JobRecord, **more: Any) -> Self:
        return cls.model_validate(_fields(cls, job, sweep=job.sweep_id, device=job.device_id, **more))


class AttemptView(BaseModel):
    """One lease of a job, how it ended, and the last lines of its log."""

    fence: int
    device: str
    node: str | None
    boot_id: str
    started_at: datetime
    ended_at: datetime | None
    outcome: str | None
    reason: str | None
    message: str | None
    exit_code: int | None
    signal: str | None
    log_tail: list[str]
    code_version: str | None

    @classmethod
    def of(cls, attempt: AttemptRecord) -> AttemptView:
        return cls.model_validate(_fields(cls, attempt, device=attempt.device_id, log_tail=list(attempt.log_tail)))


class ResultView(BaseModel):
    """The measurement that counts: the flat row, and the raw record it is computed from."""

    row: dict[str, Any] = Field(description="the flat row, same names as in CSV and JSON")
    measurement: dict[str, Any] = Field(description="memory, conditions, verdict, energy as recorded")
    samples: list[dict[str, Any]] = Field(description="every iteration with its timestamps in nanoseconds")
    child: dict[str, Any] | None = Field(description="the measuring process: load time and its memory stages")

    @classmethod
    def of(cls, result: ResultRecord, row: dict[str, Any]) -> ResultView | None:
        if result.measurement is None:
            return None
        return cls(row=row, measurement=result.measurement, samples=list(result.samples), child=result.child)


class JobDetail(JobView):
    """A job with why it is where it is in words, its attempts, and its result when there is one."""

    model_config = _example(examples.JOB_DETAIL)

    explanation: str
    attempts: list[AttemptView]
    result: ResultView | None


class DeviceView(BaseModel):
    """A device of the lab. `reason` says why it is not free; `job` and `load_group` what it is doing."""

    model_config = _example(examples.DEVICE)

    id: str
    hardware_class: str
    node: str
    memory_bytes: int
    declared: bool = Field(description="claimed for a test cluster rather than detected; takes simulated jobs only")
    state: DeviceState
    reason: str | None
    job: int | None
    load_group: str | None
    last_seen: datetime | None
    fingerprint: str | None
    ceiling: dict[str, Any] | None
    details: dict[str, Any]

    @classmethod
    def of(cls, device: DeviceRecord, *, is_hidden: bool = False) -> DeviceView:
        """`is_hidden`: its job is private to somebody else, so that no more is told than that it is busy."""
        shown: dict[str, Any] = {"job": device.job_id, "fingerprint": device.fingerprint_digest}
        if is_hidden:
            details = device.details | {"fence": None, "load_since": None}
            shown |= {"job": None, "load_group": None, "reason": "busy", "details": details}
        return cls.model_validate(_fields(cls, device, **shown))


class FrontierView(BaseModel):
    """How large a batch runs for one configuration and sequence length, and the smallest that does not."""

    model_config = _example(examples.FRONTIER)

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
    reason: str | None = Field(description="why the smallest infeasible one does not run")

    @classmethod
    def of(cls, entry: FrontierRecord) -> Self:
        return cls.model_validate(_fields(cls, entry))


class ChangedView(BaseModel):
    """How many jobs a request to cancel or retry changed, and the sweep as it stands after it."""

    model_config = _example(examples.CHANGED)

    changed: int
    sweep: SweepSummary
    note: str | None = Field(None, description="why nothing was changed, where nothing was")


class EventView(BaseModel):
    """One event of the stream: the `data` of a server-sent event."""

    model_config = _example(examples.EVENT)

    id: int
    kind: str
    sweep: str | None
    job: int | None
    at: datetime
    data: dict[str, Any]

    @classmethod
    def of(cls, event: EventRecord) -> EventView:
        return cls.model_validate(_fields(cls, event, sweep=event.sweep_id, job=event.job_id))


class HealthView(BaseModel):
    """Whether the process, or what it needs, is well."""

    model_config = _example(examples.HEALTH)

    status: str


def _fields(view: type[BaseModel], record: Any, **renamed: Any) -> dict[str, Any]:
    """The attributes of `record` that `view` shows, and those it shows under another name."""
    shown = {name: getattr(record, name) for name in view.model_fields if hasattr(record, name)}
    return shown | renamed
