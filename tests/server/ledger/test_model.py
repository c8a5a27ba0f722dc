"""The queue on a real Postgres against a model made of lifecycle.py: whatever is done in whatever order, both agree.

Nothing here depends on the clock. Sweeps of one priority are served by device-seconds, so every sweep gets a priority of
its own and the model knows which job is next; who is served by device-seconds is tested in `test_fairness.py`.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, ClassVar

from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import Engine, text

from effillm_server.errors import Conflict
from effillm_server.ledger import queries, queue
from effillm_server.ledger.tables import metadata
from effillm_server.lifecycle import RETRYABLE, JobState
from tests.support.ledger import (
    cell,
    declaration,
    expire,
    request,
    skip_backoff,
    submit,
)
from tests.support.ledger_model import OUTCOMES, Job, LedgerModel

DEVICES = ("one", "two")
# No lease runs out because the machine is slow.
LONG_S = 86_400.0
MEANWHILE = ("nothing", "nothing", "nothing", "drained", "reaped", "replaced", "quarantined", "lost")

# What the counters hold of leases in flight, less what the jobs say.
IN_FLIGHT = """
SELECT (SELECT coalesce(sum(leased_since_ms), 0) FROM sweep_counter)
    - (SELECT coalesce(sum((extract(epoch FROM leased_at) * 1000)::bigint), 0) FROM job)
"""


class LedgerMachine(LedgerModel, RuleBasedStateMachine):
    engine: ClassVar[Engine]

    @initialize()
    def empty(self) -> None:
        with self.engine.begin() as c:
            c.execute(text(f"TRUNCATE {', '.join(metadata.tables)} RESTART IDENTITY CASCADE"))
        self.forget(DEVICES)
        self.boots = self.sweeps = 0
        for name in DEVICES:
            self._register(name)
            self._attest(name)
        self.submit([1, 2, 4])

    # What a user does

    @precondition(lambda self: len(self.jobs) < 12)
    @rule(sizes=st.lists(st.sampled_from([1, 2, 4]), min_size=1, max_size=3, unique=True), urgent=st.booleans())
    def submit(self, sizes: list[int], urgent: bool = False) -> None:
        """No two sweeps have one priority: the next one comes before all others, or after them."""
        self.sweeps += 1
        priority = self.sweeps if urgent else -self.sweeps
        with self.engine.begin() as c:
            sweep = submit(c, *(cell(batch_size=size) for size in sizes), priority=priority)
            stored = queries.jobs(c, sweep, None, 10)
        self.jobs |= {job.id: Job(sweep, job.cell.batch_size, priority) for job in stored}

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def cancel_job(self, data: st.DataObject) -> None:
        number, job = self._any(data)
        with self.engine.begin() as c:
            try:
                assert queue.cancel_job(c, number) is JobState.CANCELLED
                allowed = True
            except Conflict:
                allowed = False
        assert allowed == (job.state in (JobState.PENDING, JobState.LEASED, JobState.CANCELLED))
        if allowed:
            self.cancelled(job)

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def cancel_sweep(self, data: st.DataObject) -> None:
        sweep = self._any(data)[1].sweep
        open_jobs = [job for job in self.of_sweep(sweep) if not job.state.is_terminal]
        with self.engine.begin() as c:
            assert queue.cancel_sweep(c, sweep) == len(open_jobs)
        for job in open_jobs:
            self.cancelled(job)

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def retry_job(self, data: st.DataObject) -> None:
        number, job = self._any(data)
        with self.engine.begin() as c:
            try:
                queue.retry_job(c, number)
                allowed = True
            except Conflict:
                allowed = False
        assert allowed == (job.state in RETRYABLE)
        if allowed:
            self.retried(job)

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def retry_sweep(self, data: st.DataObject) -> None:
        sweep = self._any(data)[1].sweep
        ended = [job for job in self.of_sweep(sweep) if job.state in (JobState.FAILED, JobState.CANCELLED)]
        with self.engine.begin() as c:
            assert queue.retry_sweep(c, sweep) == len(ended)
        for job in ended:
            self.retried(job)

    # What a device's actor does

    @rule(name=st.sampled_from(DEVICES), settles=st.booleans())
    def lease(self, name: str, settles: bool) -> None:
        device = self.devices[name]
        if settles:
            self._release(name)
            self._attest(name)
        with self.engine.begin() as c:
            skip_backoff(c)
            lease = queue.lease(c, request(name, device.boot, ttl_s=LONG_S))
        if device.state == "leased":
            assert lease is not None
            assert (lease.job_id, lease.fence) == (device.job, self.jobs[lease.job_id].fence)
        elif device.state == "free":
            self.grant(name, None if lease is None else (lease.job_id, lease.fence, lease.fresh_child))
        else:
            assert lease is None

    @rule(
        name=st.sampled_from(DEVICES),
        lives=st.lists(
            st.tuples(st.sampled_from(sorted(OUTCOMES)), st.sampled_from(MEANWHILE)), min_size=1, max_size=4
        ),
    )
    def work(self, name: str, lives: list[tuple[str, str]]) -> None:
        """A device that runs what it is given, one job after the other, and what befalls it while it does."""
        for outcome, meanwhile in lives:
            if not any(job.state is JobState.PENDING for job in self.jobs.values()):
                self.submit([1, 2, 4])
            self.drain(name, draining=False)
            self.lease(name, settles=True)
            number = self.devices[name].job
            if number is None:
                continue
            fence = self.jobs[number].fence
            if meanwhile == "drained":
                self.drain(name, draining=True)
            elif meanwhile != "nothing":
                self.lose(name, meanwhile)
            self._finish(number, fence, outcome)

    @precondition(lambda self: any(job.tries for job in self.jobs.values()))
    @rule(data=st.data(), name=st.sampled_from(sorted(OUTCOMES)))
    def finish(self, data: st.DataObject, name: str) -> None:
        """Any attempt there ever was reports: mostly one that runs or was reaped, for of old ones there are more and more."""
        attempts = [(number, fence) for number, job in self.jobs.items() for fence in job.tries]
        live = [(n, f) for n, f in attempts if self.jobs[n].tries[f].ended in (None, "reaped")]
        number, fence = data.draw(st.sampled_from(live or attempts) | st.sampled_from(attempts))
        self._finish(number, fence, name)

    def _finish(self, number: int, fence: int, name: str) -> None:
        job = self.jobs[number]
        attempt = job.tries[fence]
        with self.engine.begin() as c:
            finished = queue.finish(c, attempt.device, attempt.boot, number, fence, OUTCOMES[name])
        assert (finished.accepted, finished.state) == self.judge(job, fence, name)
        assert finished.accepted == (finished.why_not is None)

    @rule(name=st.sampled_from(DEVICES))
    def renew(self, name: str) -> None:
        device = self.devices[name]
        held = [
            (number, fence) for number, job in self.jobs.items() for fence, t in job.tries.items() if t.device == name
        ]
        with self.engine.begin() as c:
            renewal = queue.renew(c, name, device.boot, held, LONG_S)
        now = [] if device.job is None else [(device.job, self.jobs[device.job].fence)]
        assert list(renewal.kept) == now
        cancelled = {(n, f) for n, f in held if self.jobs[n].tries[f].ended == "cancelled"}
        assert set(renewal.to_cancel) == cancelled
        assert set(renewal.lost) == set(held) - set(now) - cancelled
        # Told and counted, but for what this very boot has reported.
        tries = [self.jobs[number].tries[fence] for number, fence in renewal.lost]
        self.refused_renewals += sum(not (one.ended in OUTCOMES and one.boot == device.boot) for one in tries)

    # What befalls a device

    @rule(name=st.sampled_from(DEVICES), draining=st.booleans())
    def drain(self, name: str, draining: bool) -> None:
        device = self.devices[name]
        with self.engine.begin() as c:
            (queue.drain if draining else queue.undrain)(c, name)
        device.draining = draining
        if device.state in ("free", "draining"):
            device.ready()

    @rule(name=st.sampled_from(DEVICES), how=st.sampled_from(MEANWHILE[4:]))
    def lose(self, name: str, how: str) -> None:
        {"reaped": self._reap, "replaced": self._register, "quarantined": self._quarantine, "lost": self._mark_lost}[
            how
        ](name)

    def _register(self, name: str) -> None:
        device = self.devices[name]
        self.boots += 1
        with self.engine.begin() as c:
            queue.register_device(c, declaration(name), f"boot-{self.boots}")
        self.lapse(name)
        device.boot, device.state = f"boot-{self.boots}", "quarantined"

    def _quarantine(self, name: str) -> None:
        with self.engine.begin() as c:
            assert queue.quarantine(c, name, self.devices[name].boot, "foreign process")
        self.lapse(name)
        self.devices[name].state = "quarantined"

    def _mark_lost(self, name: str) -> None:
        with self.engine.begin() as c:
            queue.mark_lost(c, name, "node gone")
        self.lapse(name)
        self.devices[name].state = "lost"

    def _reap(self, name: str) -> None:
        number = self.devices[name].job
        with self.engine.begin() as c:
            if number is not None:
                expire(c, number)
            reaped = queue.reap(c, lambda: 0.5)
        assert reaped == ([] if number is None else [(number, self.jobs[number].fence)])
        if number is not None:
            self.lapse(name)
            self.devices[name].state = "lost"

    def _attest(self, name: str) -> None:
        device = self.devices[name]
        with self.engine.begin() as c:
            hit = queue.attest(c, name, device.boot, None, None)
        assert hit == (device.state != "leased")
        if hit:
            device.ready()

    def _release(self, name: str) -> None:
        device = self.devices[name]
        with self.engine.begin() as c:
            hit = queue.release(c, name, device.boot)
        assert hit == (device.state == "releasing")
        if hit:
            device.ready()

    def _any(self, data: st.DataObject) -> tuple[int, Job]:
        number = data.draw(st.sampled_from(sorted(self.jobs)))
        return number, self.jobs[number]

    # What must hold after every step

    @invariant()
    def ledger_and_model_agree(self) -> None:
        with self.engine.connect() as c:
            jobs = {row.id: _seen(row) for row in c.execute(text("SELECT * FROM job"))}
            devices = {
                row.id: (row.state, row.boot_id, row.draining) for row in c.execute(text("SELECT * FROM device"))
            }
            held = {row.device_id: row.job_id for row in c.execute(text("SELECT * FROM lease_device"))}
            counts = queries.counts(c)
            balance = c.execute(text(IN_FLIGHT)).scalar_one()
        assert jobs == {
            number: (j.state, j.fence, j.faults, j.remeasures, j.result_fence, j.avoid, j.fresh)
            for number, j in self.jobs.items()
        }
        assert devices == {name: (d.state, d.boot, d.draining) for name, d in self.devices.items()}
        assert held == {name: d.job for name, d in self.devices.items() if d.job is not None}
        states = [job.state for job in self.jobs.values()]
        assert counts.jobs == {state: states.count(state) for state in JobState}
        assert counts.rejected_outcomes == self.rejected
        assert counts.rejected_renewals == self.refused_renewals
        assert balance == 0


def _seen(row: Any) -> tuple[Any, ...]:
    return (row.state, row.fence, row.faults, row.remeasures, row.result_fence, row.avoid_device, row.fresh_child)


SEED = 1
NEEDED = {"repeated", "refused", "late", "implied", "elsewhere", "drained"}


def test_the_queue_does_what_the_model_of_the_lifecycle_does(engine: Engine) -> None:
    """Seeded histories, the same on every machine; among them every situation that has its own rule comes up."""
    LedgerMachine.engine, LedgerMachine.seen = engine, Counter()
    run_state_machine_as_test(
        seed(SEED)(LedgerMachine),
        settings=settings(
            max_examples=60, stateful_step_count=30, deadline=None, database=None, phases=[Phase.generate],
            report_multiple_bugs=False, suppress_health_check=list(HealthCheck),
        ),
    )  # fmt: skip
    assert {situation for situation, times in LedgerMachine.seen.items() if times} >= NEEDED
