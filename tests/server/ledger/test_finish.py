"""Outcomes: accepted once from the holder of the fence, everything else refused and kept."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import IntegrityError

from effillm_server.contract.fingerprint import Software
from effillm_server.contract.job import Lease
from effillm_server.contract.outcome import Cancelled, CellMemory, Exit, FaultKind, MemoryReading, Outcome
from effillm_server.ledger import queries, queue
from effillm_server.lifecycle import DeviceState, JobState, SweepState
from effillm_server.records import Finished
from tests.support.ledger import (
    BOOT,
    GB,
    cell,
    child,
    crashed,
    expire,
    fingerprint,
    hardware,
    invalid,
    join,
    leased,
    measured,
    out_of_memory,
    request,
    samples,
    skip_backoff,
    submit,
)


def _started(c: Connection, *cells: Any, **changes: Any) -> Lease:
    join(c, **changes)
    submit(c, *(cells or [cell()]))
    return leased(c)


def _finish(c: Connection, lease: Lease, outcome: Outcome, **changes: Any) -> Finished:
    return queue.finish(c, lease.device_id, changes.pop("boot", BOOT), lease.job_id, lease.fence, outcome, **changes)


def _rejected(c: Connection) -> list[tuple[int, int]]:
    """(fence, times) of every refused outcome."""
    return [tuple(row) for row in c.execute(text("SELECT fence, times FROM rejected_outcome ORDER BY id"))]


def _reaped(c: Connection, lease: Lease) -> None:
    expire(c, lease.job_id)
    assert queue.reap(c, lambda: 0.5) == [(lease.job_id, lease.fence)]


def test_a_measurement_is_stored_whole_and_ends_the_job(engine: Engine) -> None:
    memory = CellMemory(peak_decode=MemoryReading(ram_bytes=GB, ram_peak_bytes=2 * GB, vram_bytes=3 * GB))
    outcome = measured(memory=memory, energy_j=12.5, reasons=("noisy",), details={"clocks": {"monotonic_ns": 5}})
    with engine.begin() as c:
        lease = _started(c)
        assert _finish(c, lease, outcome) == Finished(accepted=True, state=JobState.MEASURED)
    with engine.connect() as c:
        job, result, device = (
            queries.job(c, lease.job_id),
            queries.result(c, lease.job_id),
            queries.device(c, "box-cpu0"),
        )
        row = c.execute(text("SELECT * FROM measurement")).one()
        clocks = c.execute(text("SELECT clocks FROM attempt")).scalar_one()
    assert job is not None
    assert result is not None
    assert device is not None
    assert (job.state, job.result_fence, job.verdict, job.device_id) == (JobState.MEASURED, 1, "valid", "box-cpu0")
    assert device.state is DeviceState.FREE
    stored = {name: value for name, value in (result.measurement or {}).items() if value is not None}
    sent = outcome.model_dump(mode="json", exclude={"samples"})
    assert {name: stored[name] for name in sent if sent[name] is not None} == {
        n: v for n, v in sent.items() if v is not None
    }
    assert [s["timestamps_ns"] for s in result.samples] == [list(s.timestamps_ns) for s in outcome.samples]
    assert [s["phase"] for s in result.samples] == [s.phase for s in outcome.samples]
    # Four tokens in a second, batch 1; the first one after a quarter.
    assert (row.throughput_tok_s, row.ttft_s, row.e2e_s) == (4.0, 0.25, 1.0)
    assert (row.iterations, row.warmup_iterations) == (5, 3)
    assert (row.peak_ram_bytes, row.peak_vram_bytes, row.energy_j) == (2 * GB, 3 * GB, 12.5)
    assert clocks == {"monotonic_ns": 5}


def test_the_next_lease_comes_with_the_end_of_the_last(engine: Engine) -> None:
    with engine.begin() as c:
        lease = _started(c, cell(), cell(batch_size=2))
        finished = _finish(c, lease, measured(), next_lease=request(held_group=lease.load_group))
        device = queries.device(c, "box-cpu0")
    assert finished.next is not None
    assert finished.next.cell.batch_size == 2
    assert device is not None
    assert (device.state, device.job_id) == (DeviceState.LEASED, finished.next.job_id)


@pytest.mark.parametrize(("outcome", "state", "reason"), [
    (out_of_memory(), JobState.INFEASIBLE, "out_of_device_memory"),
    (out_of_memory(warm=True), JobState.PENDING, "confirm_out_of_memory"),
    (crashed(), JobState.PENDING, "crashed"),
    (crashed(fault=FaultKind.HUNG), JobState.PENDING, "hung"),
    (invalid(), JobState.PENDING, "invalid_verdict"),
    (Cancelled(), JobState.CANCELLED, None),
])  # fmt: skip
def test_each_outcome_moves_job_counters_and_attempt(
    engine: Engine, outcome: Outcome, state: JobState, reason: str | None
) -> None:
    with engine.begin() as c:
        lease = _started(c)
        assert _finish(c, lease, outcome).state is state
    with engine.connect() as c:
        job, attempt = queries.job(c, lease.job_id), queries.attempts(c, lease.job_id)[0]
        sweep = queries.sweep(c, lease.sweep_id)
    assert job is not None
    assert sweep is not None
    assert (job.state, job.reason) == (state, reason)
    assert sweep.counts[state] == 1
    assert sum(sweep.counts.values()) == 1
    assert (attempt.outcome, attempt.ended_at is not None) == (outcome.kind, True)


def test_the_end_of_a_broken_child_is_kept_with_its_log(engine: Engine) -> None:
    outcome = crashed(exit=Exit(code=None, signal="SIGSEGV", log_tail=("loading", "tab\there")), child=child())
    with engine.begin() as c:
        lease = _started(c)
        _finish(c, lease, outcome)
        attempt = queries.attempts(c, lease.job_id)[0]
        assert c.execute(text("SELECT count(*) FROM child")).scalar_one() == 1
    assert (attempt.signal, attempt.log_tail, attempt.reason) == ("SIGSEGV", ("loading", "tab\there"), "crashed")


def test_an_attempt_names_the_code_it_ran_with_even_when_it_broke(engine: Engine) -> None:
    with engine.begin() as c:
        join(c)
        queue.attest(c, "box-cpu0", BOOT, None, fingerprint())
        submit(c, cell())
        lease = leased(c)
        _finish(c, lease, crashed())
        assert queries.attempts(c, lease.job_id)[0].code_version == "0.1.0"


def test_a_cancelled_child_leaves_its_device_releasing(engine: Engine) -> None:
    with engine.begin() as c:
        lease = _started(c)
        _finish(c, lease, Cancelled())
        device = queries.device(c, lease.device_id)
        assert device is not None
        assert device.state is DeviceState.RELEASING
        assert queue.release(c, lease.device_id, BOOT)


def test_faults_are_retried_until_the_attempts_are_used_up(engine: Engine) -> None:
    states = []
    with engine.begin() as c:
        lease = _started(c)
        for _ in range(3):
            states.append(_finish(c, lease, crashed()).state)
            skip_backoff(c)
            lease = queue.lease(c, request()) or lease
        job = queries.job(c, lease.job_id)
    assert states == [JobState.PENDING, JobState.PENDING, JobState.FAILED]
    assert job is not None
    assert job.message == "given up after 3 attempts; the last one: signal SEGV"


def test_an_invalid_result_counts_until_it_is_measured_again_and_stays_after_the_last(engine: Engine) -> None:
    with engine.begin() as c:
        lease = _started(c)
        for remeasures in (1, 2):
            assert _finish(c, lease, invalid()).state is JobState.PENDING
            job = queries.job(c, lease.job_id)
            assert job is not None
            assert (job.remeasures, job.result_fence, job.verdict) == (remeasures, lease.fence, "invalid")
            lease = leased(c)
        assert _finish(c, lease, invalid()).state is JobState.MEASURED
        assert c.execute(text("SELECT count(*) FROM measurement")).scalar_one() == 3


def test_the_same_outcome_again_gets_the_same_answer_and_is_stored_once(engine: Engine) -> None:
    following = request(held_group=None)
    with engine.begin() as c:
        lease = _started(c, cell(), cell(batch_size=2))
        first = _finish(c, lease, measured(), next_lease=following)
    with engine.begin() as c:
        assert _finish(c, lease, measured(), next_lease=following) == first
        assert c.execute(text("SELECT count(*) FROM measurement")).scalar_one() == 1
        assert _rejected(c) == []


def test_a_repeated_fault_is_counted_once(engine: Engine) -> None:
    with engine.begin() as c:
        lease = _started(c)
        for _ in range(2):
            assert _finish(c, lease, crashed()).state is JobState.PENDING
        job = queries.job(c, lease.job_id)
    assert job is not None
    assert job.faults == 1


def test_a_second_different_outcome_of_one_fence_is_refused_and_kept(engine: Engine) -> None:
    with engine.begin() as c:
        lease = _started(c)
        _finish(c, lease, measured())
        second = _finish(c, lease, crashed())
        job = queries.job(c, lease.job_id)
        assert _rejected(c) == [(1, 1)]
    assert (second.accepted, second.why_not) == (False, "fence 1 has reported another outcome (measured)")
    assert job is not None
    assert job.state is JobState.MEASURED


def test_an_outcome_repeated_after_a_remeasure_was_ordered_does_not_end_the_job(engine: Engine) -> None:
    with engine.begin() as c:
        lease = _started(c)
        _finish(c, lease, invalid())
        again = _finish(c, lease, invalid())
        other = _finish(c, lease, measured())
        job = queries.job(c, lease.job_id)
    assert (again.accepted, again.state) == (True, JobState.PENDING)
    assert not other.accepted
    assert job is not None
    assert (job.state, job.remeasures) == (JobState.PENDING, 1)


def test_a_job_reaped_but_not_leased_again_still_takes_its_late_result(engine: Engine) -> None:
    with engine.begin() as c:
        lease = _started(c)
        _reaped(c, lease)
        before = queries.job(c, lease.job_id)
    with engine.begin() as c:
        assert _finish(c, lease, measured()).state is JobState.MEASURED
        job, device, sweep = (
            queries.job(c, lease.job_id), queries.device(c, "box-cpu0"), queries.sweep(c, lease.sweep_id)
        )  # fmt: skip
    assert before is not None
    assert job is not None
    assert device is not None
    assert sweep is not None
    # The attempt was not lost after all; the device is, until it attests.
    assert (before.state, before.faults, job.faults) == (JobState.PENDING, 1, 0)
    assert device.state is DeviceState.LOST
    assert sweep.counts[JobState.MEASURED] == 1


def test_a_superseded_attempt_writes_nothing_but_is_kept_and_counted(engine: Engine) -> None:
    with engine.begin() as c:
        lease = _started(c)
        _reaped(c, lease)
        skip_backoff(c)
        join(c, "box-cpu1")
        newer = leased(c, "box-cpu1")
    for _ in range(2):
        with engine.begin() as c:
            late = _finish(c, lease, measured())
    with engine.connect() as c:
        assert _rejected(c) == [(1, 2)]
        assert c.execute(text("SELECT count(*) FROM measurement")).scalar_one() == 0
        assert queries.counts(c).rejected_outcomes == 2
        job = queries.job(c, lease.job_id)
    assert (late.accepted, late.why_not) == (False, "superseded: the job is at fence 2, this outcome belongs to 1")
    assert job is not None
    assert (job.state, job.fence, newer.fence) == (JobState.LEASED, 2, 2)


@pytest.mark.parametrize(("change", "why"), [
    ({"job_id": 999}, "there is no job 999"),
    ({"fence": 7}, "never held"),
    ({"device_id": "another"}, "never held"),
])  # fmt: skip
def test_an_outcome_of_a_lease_that_never_was_is_refused(engine: Engine, change: dict[str, Any], why: str) -> None:
    with engine.begin() as c:
        lease = _started(c).model_copy(update=change)
        finished = _finish(c, lease, measured())
        assert _rejected(c) == [(lease.fence, 1)]
    assert finished.why_not is not None
    assert why in finished.why_not


def test_an_outcome_from_the_spool_of_an_earlier_life_is_accepted(engine: Engine) -> None:
    with engine.begin() as c:
        lease = _started(c)
    with engine.begin() as c:
        join(c, boot_id="boot-2")
        assert _finish(c, lease, measured(), boot="boot-1").state is JobState.MEASURED
        device = queries.device(c, "box-cpu0")
    assert device is not None
    assert (device.state, device.boot_id) == (DeviceState.FREE, "boot-2")


def test_a_measurement_on_a_declared_device_must_be_simulated(engine: Engine) -> None:
    with engine.begin() as c:
        lease = _started(c, declared=True)
    declared = fingerprint(hardware=hardware(declared=True))
    with pytest.raises(IntegrityError, match="declared_is_simulated"), engine.begin() as c:
        _finish(c, lease, measured(simulated=False, fingerprint=declared))
    with engine.begin() as c:
        assert _finish(c, lease, measured(simulated=True, fingerprint=declared)).accepted


def test_the_last_job_ends_the_sweep_once(engine: Engine) -> None:
    with engine.begin() as c:
        lease = _started(c, cell(), cell(batch_size=2))
        following = request(held_group=lease.load_group)
        second = _finish(c, lease, measured(), next_lease=following).next
        assert second is not None
        running = queries.sweep(c, lease.sweep_id)
        _finish(c, second, measured(), next_lease=following)
        finished = queries.sweep(c, lease.sweep_id)
    with engine.connect() as c:
        kinds = [event.kind for event in queries.events(c, 0, 100)]
    assert running is not None
    assert finished is not None
    assert (running.state, running.finished_at) == (SweepState.RUNNING, None)
    assert (finished.state, finished.finished_at is not None) == (SweepState.FINISHED, True)
    assert kinds.count("sweep_finished") == 1


def test_two_last_jobs_that_end_at_once_leave_the_end_of_the_sweep_to_the_reaper(engine: Engine) -> None:
    with engine.begin() as c:
        join(c, "one")
        join(c, "two")
        sweep_id = submit(c, cell(), cell(batch_size=2))
        leases = leased(c, "one"), leased(c, "two")
    # Neither sees the other's job ended.
    with engine.connect() as one, engine.connect() as two:
        _finish(one, leases[0], measured(child=child("a")))
        newer = fingerprint(software=Software(python="3.12.1", kernel="6.1", code_version="0.1.0"))
        _finish(two, leases[1], measured(child=child("b"), fingerprint=newer))
        one.commit()
        two.commit()
    with engine.begin() as c:
        before = queries.sweep(c, sweep_id)
        queue.reap(c, lambda: 0.5)
        after = queries.sweep(c, sweep_id)
    assert before is not None
    assert after is not None
    assert (before.finished_at, after.finished_at is not None) == (None, True)


def test_a_child_is_joined_by_all_its_cells_and_completed_at_its_end(engine: Engine) -> None:
    with engine.begin() as c:
        lease = _started(c, cell(), cell(batch_size=2))
        second = _finish(c, lease, measured(), next_lease=request()).next
        assert second is not None
        _finish(c, second, measured(child=child(cells_measured=2)))
        released = child(released=MemoryReading(ram_bytes=GB), loaded=None, cells_measured=2)
        assert queue.record_child(c, "box-cpu0", BOOT, released)
        results = queries.results(c, lease.sweep_id, None, 10, with_samples=False)
    children = [result.child for result in results]
    assert children[0] == children[1]
    assert children[0] is not None
    assert children[0]["released"]["ram_bytes"] == GB
    assert children[0]["loaded"]["ram_bytes"] == 2 * GB
    assert children[0]["cells_measured"] == 2


def test_a_child_of_another_device_is_not_overwritten(engine: Engine) -> None:
    with engine.begin() as c:
        join(c, "one")
        join(c, "two")
        assert queue.record_child(c, "one", BOOT, child())
        assert not queue.record_child(c, "two", BOOT, child(load_s=99.0))


def test_the_headline_leaves_out_outliers_and_warm_up(engine: Engine) -> None:
    slow = tuple(
        s.model_copy(update={"timestamps_ns": tuple(9 * t for t in s.timestamps_ns), "outlier": True})
        for s in samples()
    )
    with engine.begin() as c:
        lease = _started(c, cell(batch_size=2))
        _finish(c, lease, measured(samples=samples() + slow))
        row = c.execute(text("SELECT throughput_tok_s, ttft_s, iterations FROM measurement")).one()
    assert tuple(row) == (8.0, 0.25, 5)
