"""Forced races: two transactions let loose at the same moment, fifty times each, with the outcome checked every time.

`make test-faults` does it five hundred times (EFFILLM_RACES).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, text

from effillm_server.contract.job import Lease
from effillm_server.errors import Conflict
from effillm_server.ledger import queries, queue
from effillm_server.lifecycle import DeviceState, JobState
from effillm_server.records import Finished, JobRecord, Renewal
from tests.support.ledger import (
    BOOT,
    cell,
    child,
    crashed,
    declaration,
    expire,
    join,
    leased,
    measured,
    request,
    samples,
    submit,
)

RUNS = int(os.environ.get("EFFILLM_RACES", "50"))


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as pool:
        yield pool


def _at_once(pool: ThreadPoolExecutor, engine: Engine, *acts: Callable[[Connection], Any]) -> list[Any]:
    """What each act returned (or the Conflict it raised), every one in a transaction of its own, started together."""
    barrier = threading.Barrier(len(acts))

    def run(act: Callable[[Connection], Any]) -> Any:
        with engine.connect() as c:
            c.exec_driver_sql("SELECT 1")
            barrier.wait()
            try:
                result = act(c)
            except Conflict as error:
                c.rollback()
                return error
            c.commit()
            return result

    return list(pool.map(run, acts))


def _start(engine: Engine, run: int) -> Lease:
    """A new job leased to a device of its own."""
    device = f"device-{run}"
    with engine.begin() as c:
        join(c, device, hardware_class=f"class-{run}")
        submit(c, cell(hardware=f"class-{run}"))
        return leased(c, device)


def _measured(lease: Lease, **changes: Any) -> Callable[[Connection], Finished]:
    outcome = measured(samples=samples(1), child=child(f"child-{lease.device_id}"), **changes)
    return lambda c: queue.finish(c, lease.device_id, BOOT, lease.job_id, lease.fence, outcome)


def _reap(c: Connection) -> list[tuple[int, int]]:
    return queue.reap(c, lambda: 0.5)


def _look(engine: Engine, lease: Lease) -> tuple[JobRecord, DeviceState, int]:
    """The job, its device's state, how many measurements it has; and the counters must agree with it."""
    with engine.connect() as c:
        job, device, sweep = (
            queries.job(c, lease.job_id), queries.device(c, lease.device_id), queries.sweep(c, lease.sweep_id)
        )  # fmt: skip
        count = c.execute(
            text("SELECT count(*) FROM measurement WHERE job_id = :id"), {"id": lease.job_id}
        ).scalar_one()
        held = c.execute(
            text("SELECT count(*) FROM lease_device WHERE job_id = :id"), {"id": lease.job_id}
        ).scalar_one()
    assert job is not None
    assert device is not None
    assert sweep is not None
    assert {state: n for state, n in sweep.counts.items() if n} == {job.state: 1}
    assert held == (job.state is JobState.LEASED) == (device.state is DeviceState.LEASED)
    return job, device.state, count


def test_lease_expiry_against_finish_loses_no_result(engine: Engine, pool: ThreadPoolExecutor) -> None:
    for run in range(RUNS):
        lease = _start(engine, run)
        with engine.begin() as c:
            expire(c, lease.job_id)
        reaped, finished = _at_once(pool, engine, _reap, _measured(lease))
        job, device, measurements = _look(engine, lease)
        assert finished.accepted
        assert (job.state, job.faults, measurements) == (JobState.MEASURED, 0, 1)
        # Whether the lease was taken back first shows only in the device.
        assert device is (DeviceState.LOST if reaped else DeviceState.FREE)


def test_two_finishes_store_one_result(engine: Engine, pool: ThreadPoolExecutor) -> None:
    for run in range(RUNS):
        lease = _start(engine, run)
        first, second = _measured(lease, energy_j=1.0), _measured(lease, energy_j=2.0)
        results = _at_once(pool, engine, first, second)
        job, device, measurements = _look(engine, lease)
        assert sorted(result.accepted for result in results) == [False, True]
        assert (job.state, measurements, device) == (JobState.MEASURED, 1, DeviceState.FREE)
    with engine.connect() as c:
        assert queries.counts(c).rejected_outcomes == RUNS


def test_the_same_finish_twice_at_once_is_accepted_twice_and_stored_once(
    engine: Engine, pool: ThreadPoolExecutor
) -> None:
    for run in range(RUNS):
        lease = _start(engine, run)
        results = _at_once(pool, engine, _measured(lease), _measured(lease))
        job, _, measurements = _look(engine, lease)
        assert [(result.accepted, result.state) for result in results] == [(True, JobState.MEASURED)] * 2
        assert (job.state, measurements) == (JobState.MEASURED, 1)


def test_cancel_against_finish_ends_the_job_one_way_only(engine: Engine, pool: ThreadPoolExecutor) -> None:
    for run in range(RUNS):
        lease = _start(engine, run)
        cancelled, finished = _at_once(
            pool, engine, lambda c, job=lease.job_id: queue.cancel_job(c, job), _measured(lease)
        )
        job, device, measurements = _look(engine, lease)
        if isinstance(cancelled, Conflict):
            assert finished.accepted
            assert (job.state, device, measurements) == (JobState.MEASURED, DeviceState.FREE, 1)
        else:
            assert not finished.accepted
            assert (job.state, device, measurements) == (JobState.CANCELLED, DeviceState.RELEASING, 0)


def test_reaper_against_renewal_keeps_or_takes_the_lease_but_not_both(engine: Engine, pool: ThreadPoolExecutor) -> None:
    for run in range(RUNS):
        lease = _start(engine, run)
        with engine.begin() as c:
            expire(c, lease.job_id)
        held = [(lease.job_id, lease.fence)]
        renewal: Renewal
        reaped, renewal = _at_once(
            pool, engine, _reap, lambda c, d=lease.device_id, held=held: queue.renew(c, d, BOOT, held, 60.0)
        )
        job, device, _ = _look(engine, lease)
        if reaped:
            assert renewal.lost == tuple(held)
            assert (job.state, job.faults, device) == (JobState.PENDING, 1, DeviceState.LOST)
        else:
            assert renewal.kept == tuple(held)
            assert (job.state, job.faults, device) == (JobState.LEASED, 0, DeviceState.LEASED)


def test_a_sign_of_life_with_a_renewal_never_meets_a_finish_head_on(engine: Engine, pool: ThreadPoolExecutor) -> None:
    for run in range(RUNS):
        lease = _start(engine, run)
        renewal: Renewal
        renewal, finished = _at_once(pool, engine, lambda c, lease=lease: _renew(c, lease), _measured(lease))
        job, device, _ = _look(engine, lease)
        assert finished.accepted
        assert len(renewal.kept) + len(renewal.lost) == 1
        assert (job.state, device) == (JobState.MEASURED, DeviceState.FREE)


def _renew(c: Connection, lease: Lease) -> Renewal:
    queue.heartbeat(c, lease.device_id, BOOT)
    return queue.renew(c, lease.device_id, BOOT, [(lease.job_id, lease.fence)], 60.0)


def test_cancelling_a_sweep_against_devices_that_claim_and_finish_leaves_nothing_open(
    engine: Engine, pool: ThreadPoolExecutor
) -> None:
    devices = [f"device-{n}" for n in range(4)]
    with engine.begin() as c:
        for device in devices:
            join(c, device)
    for _ in range(RUNS // 5):
        with engine.begin() as c:
            sweep_id = submit(c, *(cell(batch_size=b) for b in range(1, 13)))
        acts = [lambda c, d=device: _work(c, d) for device in devices]
        _at_once(pool, engine, *acts, lambda c, s=sweep_id: queue.cancel_sweep(c, s))
        with engine.begin() as c:
            # What was claimed while the sweep was walked through belongs to it as well.
            queue.cancel_sweep(c, sweep_id)
            sweep = queries.sweep(c, sweep_id)
            for device in devices:
                queue.release(c, device, BOOT)
        assert sweep is not None
        assert sweep.counts[JobState.PENDING] == sweep.counts[JobState.LEASED] == 0
        assert sum(sweep.counts.values()) == 12
        assert sweep.finished_at is not None


def _work(c: Connection, device: str) -> None:
    lease = queue.lease(c, request(device))
    for _ in range(2):
        if lease is not None:
            outcome = measured(samples=samples(1), child=child(f"child-{device}"))
            lease = queue.finish(c, device, BOOT, lease.job_id, lease.fence, outcome, 0.5, request(device)).next


def test_devices_that_finish_and_claim_across_two_sweeps_never_lock_each_other_out(
    engine: Engine, pool: ThreadPoolExecutor
) -> None:
    devices = [f"device-{n}" for n in range(8)]
    with engine.begin() as c:
        for device in devices:
            join(c, device)
        sweeps = [submit(c, *(cell(batch_size=b) for b in range(1, 41))) for _ in range(2)]

    def drain(device: str) -> int:
        with engine.begin() as c:
            lease = queue.lease(c, request(device))
        done = 0
        while lease is not None:
            outcome = measured(samples=samples(1), child=child(f"child-{device}"))
            with engine.begin() as c:
                # No held group: each goes to the sweep that had less, so both counters move in most transactions.
                lease = queue.finish(c, device, BOOT, lease.job_id, lease.fence, outcome, 0.5, request(device)).next
            done += 1
        return done

    assert sum(pool.map(drain, devices)) == 80
    with engine.begin() as c:
        queue.reap(c, lambda: 0.5)
        for sweep_id in sweeps:
            sweep = queries.sweep(c, sweep_id)
            assert sweep is not None
            assert (sweep.counts[JobState.MEASURED], sweep.finished_at is not None) == (40, True)


def test_a_replaced_actor_against_its_own_late_finish_keeps_the_result(
    engine: Engine, pool: ThreadPoolExecutor
) -> None:
    for run in range(RUNS):
        lease = _start(engine, run)
        with engine.connect() as c:
            declared = queries.device(c, lease.device_id)
        assert declared is not None
        _, finished = _at_once(pool, engine, lambda c, d=lease.device_id: _replace(c, d), _measured(lease))
        job, device, measurements = _look(engine, lease)
        assert finished.accepted
        assert (job.state, measurements, device) == (JobState.MEASURED, 1, DeviceState.QUARANTINED)


def _replace(c: Connection, device_id: str) -> DeviceState:
    return queue.register_device(
        c, declaration(device_id, hardware_class=device_id.replace("device", "class")), "boot-2"
    )


def test_a_node_marked_lost_against_a_fault_counts_one_fault(engine: Engine, pool: ThreadPoolExecutor) -> None:
    for run in range(RUNS):
        lease = _start(engine, run)
        _at_once(
            pool, engine, lambda c, d=lease.device_id: queue.mark_lost(c, d, "node gone"),
            lambda c, lease=lease: queue.finish(c, lease.device_id, BOOT, lease.job_id, lease.fence, crashed()),
        )  # fmt: skip
        job, device, _ = _look(engine, lease)
        assert (job.state, job.faults, device) == (JobState.PENDING, 1, DeviceState.LOST)
