"""The ledger as lifecycle.py would have it: jobs, attempts and devices in memory, for tests that compare."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import ClassVar

from effillm_server.contract.outcome import Cancelled, FaultKind, Infeasible, Measured, Outcome
from effillm_server.lifecycle import TRANSITIONS, History, JobState, Next, after, after_fault
from tests.support.ledger import crashed, invalid, measured, out_of_memory, samples

OUTCOMES: dict[str, Outcome] = {
    "measured": measured(samples=samples(1)),
    "invalid": invalid(),
    "out_of_memory": out_of_memory(),
    "warm_out_of_memory": out_of_memory(warm=True),
    "crashed": crashed(),
    "hung": crashed(fault=FaultKind.HUNG),
    "cancelled": Cancelled(),
}


@dataclass
class Try:
    """An attempt. `ended` is how: reaped, cancelled, or the name of the outcome its actor reported."""

    device: str
    boot: str
    ended: str | None = None
    followed_by: JobState | None = None


@dataclass
class Job:
    sweep: str
    batch_size: int
    priority: int = 0
    state: JobState = JobState.PENDING
    fence: int = 0
    faults: int = 0
    remeasures: int = 0
    result_fence: int | None = None
    avoid: str | None = None
    fresh: bool = False
    tries: dict[int, Try] = field(default_factory=dict)

    def go(self, state: JobState) -> None:
        assert state is self.state or state in TRANSITIONS[self.state], f"{self.state} -> {state}"
        self.state = state


@dataclass
class Device:
    boot: str = ""
    state: str = "none"
    draining: bool = False
    job: int | None = None

    def ready(self) -> None:
        self.state = "draining" if self.draining else "free"


class LedgerModel:
    """What every operation must answer, and what it changes."""

    # Situations met: a test is worth something only if all of them were.
    seen: ClassVar[Counter[str]]

    def forget(self, devices: tuple[str, ...]) -> None:
        """Start anew with these devices."""
        self.jobs: dict[int, Job] = {}
        self.devices = {name: Device() for name in devices}
        self.rejected = self.refused_renewals = 0

    def grant(self, name: str, lease: tuple[int, int, bool] | None) -> None:
        others = any(d.state in ("free", "leased", "releasing") for n, d in self.devices.items() if n != name)
        eligible = {
            number for number, job in self.jobs.items()
            if job.state is JobState.PENDING and not (job.avoid == name and others)
        }  # fmt: skip
        self.seen["elsewhere"] += sum(job.avoid == name and others for job in self.jobs.values())
        if lease is None:
            assert not eligible
            return
        number, fence, fresh = lease
        job, device = self.jobs[number], self.devices[name]
        assert number == min(eligible, key=self._order)
        assert (fence, fresh) == (job.fence + 1, job.fresh)
        job.go(JobState.LEASED)
        job.fence = fence
        job.tries[fence] = Try(name, device.boot)
        device.state, device.job = "leased", number

    def _order(self, number: int) -> tuple[int, int, int]:
        """Whose turn it is: the highest priority, then the smallest cell, then the first."""
        job = self.jobs[number]
        return -job.priority, job.batch_size, number

    def judge(self, job: Job, fence: int, name: str) -> tuple[bool, JobState | None]:
        """What finish must answer, and its effect on the model."""
        attempt, outcome = job.tries[fence], OUTCOMES[name]
        if attempt.ended == name:
            self.seen["repeated"] += 1
            return True, attempt.followed_by
        superseded = fence != job.fence or job.state not in (JobState.LEASED, JobState.PENDING)
        if attempt.ended in OUTCOMES or superseded:
            self.rejected += 1
            self.seen["refused"] += 1
            return False, None
        was_reaped = job.state is JobState.PENDING
        if was_reaped:
            job.go(JobState.LEASED)  # as if the lease had never been taken back
        step = after(outcome, History(job.faults - was_reaped, job.remeasures), 0.5)
        self._step(job, fence, step, was_reaped)
        attempt.ended, attempt.followed_by = name, step.state
        device = self.devices[attempt.device]
        self.seen["late" if was_reaped else name] += 1
        if not was_reaped:
            self.seen["drained"] += device.draining
            device.job = None
            device.ready()
            if isinstance(outcome, Cancelled):
                device.state = "releasing"
        if step.state is JobState.INFEASIBLE:
            self._imply(job)
        assert isinstance(outcome, Measured | Infeasible | Cancelled) or step.counts_as_fault
        return True, step.state

    def _step(self, job: Job, fence: int, step: Next, was_reaped: bool) -> None:
        job.go(step.state)
        job.faults += step.counts_as_fault - was_reaped
        job.remeasures += step.counts_as_remeasure
        job.fresh = step.fresh_child
        job.avoid = job.tries[fence].device if step.elsewhere else None
        if step.keeps_result:
            job.result_fence = fence

    def _imply(self, origin: Job) -> None:
        for job in self.of_sweep(origin.sweep):
            if job.state is JobState.PENDING and job.batch_size >= origin.batch_size:
                job.go(JobState.INFEASIBLE)
                self.seen["implied"] += 1
                job.fresh, job.avoid = False, None

    def lapse(self, name: str) -> None:
        device = self.devices[name]
        if device.job is None:
            return
        job = self.jobs[device.job]
        step = after_fault(FaultKind.LOST, "", History(job.faults, job.remeasures), 0.5)
        self._step(job, job.fence, step, was_reaped=False)
        job.tries[job.fence].ended, job.tries[job.fence].followed_by = "reaped", step.state
        device.job = None

    def cancelled(self, job: Job) -> None:
        if job.state is JobState.LEASED:
            attempt = job.tries[job.fence]
            attempt.ended, attempt.followed_by = "cancelled", JobState.CANCELLED
            device = self.devices[attempt.device]
            device.job, device.state = None, "releasing"
        job.go(JobState.CANCELLED)
        job.fresh, job.avoid = False, None

    def retried(self, job: Job) -> None:
        job.go(JobState.PENDING)
        job.faults = job.remeasures = 0
        job.fresh, job.avoid = False, None

    def of_sweep(self, sweep: str) -> list[Job]:
        return [job for job in self.jobs.values() if job.sweep == sweep]
