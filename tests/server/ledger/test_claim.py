"""Which job a device gets: priority, fairness, load group, size; and that it is leased once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import Connection, Engine, text

from effillm_server.contract.job import Cell
from effillm_server.contract.outcome import FaultKind
from effillm_server.ledger import queries, queue
from effillm_server.ledger.transitions import NOW_MS
from effillm_server.lifecycle import DeviceState, JobState
from tests.support.ledger import (
    BOOT,
    cell,
    crashed,
    declaration,
    join,
    leased,
    measured,
    out_of_memory,
    request,
    skip_backoff,
    submit,
)


def _run_all(engine: Engine, device: str = "box-cpu0", **changes: object) -> list[tuple[str, Cell]]:
    """(sweep, cell) in the order in which one device is given them, keeping its group as an actor does."""
    order = []
    with engine.begin() as c:
        lease = queue.lease(c, request(device, **changes))
    while lease is not None:
        order.append((lease.sweep_id, lease.cell))
        following = request(device, held_group=lease.load_group, **changes)
        with engine.begin() as c:
            lease = queue.finish(c, device, BOOT, lease.job_id, lease.fence, measured(), 0.5, following).next
    return order


def test_a_lease_carries_the_cell_the_plan_and_the_first_fence(engine: Engine) -> None:
    with engine.begin() as c:
        join(c)
        sweep_id = submit(c, cell(batch_size=4), isolation="cell", measurement={"time_limit_s": 60})
        lease = leased(c)
    assert (lease.sweep_id, lease.fence, lease.attempt, lease.device_id) == (sweep_id, 1, 1, "box-cpu0")
    assert lease.cell == cell(batch_size=4)
    assert (lease.plan.time_limit_s, lease.isolation, lease.ttl_s) == (60, "cell", 60)
    with engine.connect() as c:
        job, device = queries.job(c, lease.job_id), queries.device(c, "box-cpu0")
    assert job is not None
    assert device is not None
    assert (job.state, job.device_id) == (JobState.LEASED, "box-cpu0")
    assert (device.state, device.job_id, device.load_group) == (DeviceState.LEASED, lease.job_id, lease.load_group)


def test_nothing_is_leased_when_nothing_waits_for_the_class(engine: Engine) -> None:
    with engine.begin() as c:
        join(c)
        submit(c, cell(hardware="t4"))
        assert queue.lease(c, request()) is None


def test_a_repeated_request_gets_the_lease_granted_before(engine: Engine) -> None:
    with engine.begin() as c:
        join(c)
        submit(c, cell(), cell(batch_size=2))
    with engine.begin() as c:
        first = leased(c)
    with engine.begin() as c:
        assert leased(c) == first


@pytest.mark.parametrize("state", ["quarantined", "draining", "lost", "releasing"])
def test_a_device_that_is_not_free_gets_nothing(engine: Engine, state: str) -> None:
    with engine.begin() as c:
        join(c)
        submit(c, cell(), cell())
        if state == "quarantined":
            queue.quarantine(c, "box-cpu0", BOOT, "foreign process")
        elif state == "draining":
            queue.drain(c, "box-cpu0")
        elif state == "lost":
            queue.mark_lost(c, "box-cpu0", "its node is gone")
        else:
            queue.cancel_job(c, leased(c).job_id)
        found = queries.device(c, "box-cpu0")
        assert found is not None
        assert found.state == state
        assert queue.lease(c, request()) is None


def test_another_boot_of_the_actor_gets_nothing(engine: Engine) -> None:
    with engine.begin() as c:
        join(c)
        submit(c, cell())
        assert queue.lease(c, request(boot_id="boot-0")) is None
        assert queue.lease(c, request("unknown")) is None


def test_a_group_is_run_by_ascending_size_before_the_next(engine: Engine) -> None:
    cells = [cell(quantization=q, batch_size=b) for b in (4, 1, 2) for q in ("fp32", "int8")]
    with engine.begin() as c:
        join(c)
        submit(c, *cells)
    order = [(of.quantization, of.batch_size) for _, of in _run_all(engine)]
    first = order[0][0]
    second = "int8" if first == "fp32" else "fp32"
    assert order == [(q, b) for q in (first, second) for b in (1, 2, 4)]


def test_the_higher_priority_interrupts_between_cells(engine: Engine) -> None:
    with engine.begin() as c:
        join(c)
        submit(c, *(cell(batch_size=b) for b in (1, 2)))
        low = leased(c)
        high = submit(c, cell(), priority=1)
        following = request(held_group=low.load_group)
        finished = queue.finish(c, "box-cpu0", BOOT, low.job_id, low.fence, measured(), 0.5, following)
    assert finished.next is not None
    assert finished.next.sweep_id == high


def _was_served(c: Connection, sweep_id: str, ms: int) -> None:
    """The sweep had a device for this long, until just now."""
    c.execute(
        text(
            f"UPDATE sweep_counter SET served_ms = :ms, recent_ms = :ms, recent_at_ms = {NOW_MS} WHERE sweep_id = :id"
        ),
        {"id": sweep_id, "ms": ms},
    )


def test_the_sweep_that_had_less_device_time_is_next(engine: Engine) -> None:
    with engine.begin() as c:
        join(c)
        served, waiting = (submit(c, *(cell(batch_size=b) for b in (1, 2, 3))) for _ in range(2))
        _was_served(c, served, 5000)
        assert leased(c).sweep_id == waiting


def test_device_time_in_flight_counts_as_served(engine: Engine) -> None:
    with engine.begin() as c:
        for name in ("one", "two", "three"):
            join(c, name)
        sweeps = {submit(c, *(cell(batch_size=b) for b in (1, 2, 3))) for _ in range(2)}
        first, second = leased(c, "one").sweep_id, leased(c, "two").sweep_id
        assert {first, second} == sweeps
        # The first lease has run for an hour now, the other one has just begun.
        c.execute(
            text(
                "UPDATE sweep_counter SET leased_since_ms = leased_since_ms - 3600000 WHERE sweep_id = :id AND leased = 1"
            ),
            {"id": first},
        )
        assert leased(c, "three").sweep_id == second


def test_a_held_group_is_kept_although_another_sweep_had_less(engine: Engine) -> None:
    with engine.begin() as c:
        join(c)
        mine = submit(c, *(cell(batch_size=b) for b in (1, 2, 3)))
        lease = leased(c)
        submit(c, cell())
        _was_served(c, mine, 100_000)
    assert [sweep for sweep, _ in _run_all(engine)] != []
    with engine.connect() as c:
        order = c.execute(text("SELECT sweep_id FROM attempt a JOIN job j ON j.id = a.job_id ORDER BY a.started_at"))
        assert [row.sweep_id == mine for row in order] == [True, True, True, False]
    assert lease.sweep_id == mine


def test_a_group_that_is_too_old_gives_way_to_the_sweep_that_had_less(engine: Engine) -> None:
    with engine.begin() as c:
        join(c)
        mine = submit(c, *(cell(batch_size=b) for b in (1, 2)))
        lease = leased(c)
        other = submit(c, cell())
        c.execute(text("UPDATE device SET load_since = load_since - interval '1 hour'"))
        _was_served(c, mine, 100_000)
        following = request(held_group=lease.load_group)
        finished = queue.finish(c, "box-cpu0", BOOT, lease.job_id, lease.fence, measured(), 0.5, following)
    assert finished.next is not None
    assert finished.next.sweep_id == other


def test_a_second_device_of_the_class_starts_with_another_group(engine: Engine) -> None:
    with engine.begin() as c:
        join(c, "one")
        join(c, "two")
        submit(c, *(cell(quantization=q, batch_size=b) for q in ("fp32", "int8") for b in (1, 2)))
        assert leased(c, "one").load_group != leased(c, "two").load_group


def test_devices_share_the_last_group_rather_than_idle(engine: Engine) -> None:
    with engine.begin() as c:
        join(c, "one")
        join(c, "two")
        submit(c, cell(), cell(batch_size=2))
        assert leased(c, "one").load_group == leased(c, "two").load_group


def test_a_declared_device_takes_only_simulated_cells(engine: Engine) -> None:
    with engine.begin() as c:
        join(c, declared=True)
        submit(c, cell(engine="transformers"), engine=["transformers"])
        assert queue.lease(c, request()) is None
        submit(c, cell(), priority=-1)
        assert leased(c).cell.engine == "simulated"


def test_a_retry_waits_for_its_time(engine: Engine) -> None:
    with engine.begin() as c:
        join(c)
        submit(c, cell())
        lease = leased(c)
        queue.finish(c, "box-cpu0", BOOT, lease.job_id, lease.fence, crashed())
    with engine.begin() as c:
        assert queue.lease(c, request()) is None
        skip_backoff(c)
    with engine.begin() as c:
        again = leased(c)
    assert (again.fence, again.attempt) == (2, 2)


def test_a_retry_goes_elsewhere_when_there_is_an_elsewhere(engine: Engine) -> None:
    with engine.begin() as c:
        join(c, "one")
        join(c, "two")
        submit(c, cell())
        lease = leased(c, "one")
        queue.finish(c, "one", BOOT, lease.job_id, lease.fence, crashed(fault=FaultKind.HUNG))
        skip_backoff(c)
        assert queue.lease(c, request("one")) is None
        assert leased(c, "two").job_id == lease.job_id


def test_a_retry_comes_back_when_the_other_device_is_gone(engine: Engine) -> None:
    with engine.begin() as c:
        join(c, "one")
        join(c, "two")
        submit(c, cell())
        lease = leased(c, "one")
        queue.finish(c, "one", BOOT, lease.job_id, lease.fence, crashed())
        skip_backoff(c)
        queue.mark_lost(c, "two", "its node is gone")
        assert leased(c, "one").job_id == lease.job_id


def test_the_confirmation_of_out_of_memory_asks_for_a_fresh_child(engine: Engine) -> None:
    with engine.begin() as c:
        join(c)
        submit(c, cell())
        lease = leased(c)
        queue.finish(c, "box-cpu0", BOOT, lease.job_id, lease.fence, out_of_memory(warm=True))
        again = leased(c)
    assert not lease.fresh_child
    assert again.fresh_child
    assert again.attempt == 1


def test_a_device_is_leased_once_however_many_ask(engine: Engine) -> None:
    with engine.begin() as c:
        join(c)
        submit(c, *(cell(batch_size=b) for b in range(1, 9)))

    def ask(_: int) -> int:
        with engine.begin() as c:
            return leased(c).job_id

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(ask, range(8)))) == 1
    with engine.connect() as c:
        assert c.execute(text("SELECT count(*) FROM job WHERE state = 'leased'")).scalar_one() == 1


def test_devices_that_ask_at_once_get_different_jobs(engine: Engine) -> None:
    names = [f"device-{n}" for n in range(8)]
    with engine.begin() as c:
        for name in names:
            join(c, name)
        submit(c, *(cell(batch_size=b) for b in range(1, 9)))

    def ask(name: str) -> int:
        with engine.begin() as c:
            return leased(c, name).job_id

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(ask, names))) == 8


def test_a_class_nobody_has_waits_and_says_so(engine: Engine) -> None:
    with engine.begin() as c:
        queue.register_device(c, declaration(), BOOT)
        sweep_id = submit(c, cell(hardware="a100"))
        job = queries.jobs(c, sweep_id, None, 1)[0]
        assert queries.explain(c, job.id) == "no device of class a100"
        assert queries.waiting_classes(c) == {"a100": 1}
