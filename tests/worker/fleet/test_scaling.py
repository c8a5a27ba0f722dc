"""An autoscaling cluster is asked for classes that wait, and its idle devices are let go; a real cluster is asked in test_node."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine

from effillm_server.ledger import queries, queue
from effillm_server.ledger.engine import connect
from effillm_server.settings import Settings
from effillm_worker.fleet.loop import Fleet
from effillm_worker.fleet.scaling import REPEAT_S, bundles
from tests.support import ledger
from tests.support.fake_pool import FakePool

IDLE_S = 30.0
T4 = {"effillm_class:t4": 1}


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    made = connect(database_url, "fleet")
    yield made
    made.dispose()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def pool() -> FakePool:
    return FakePool()


@pytest.fixture
def fleet(engine: Engine, pool: FakePool, clock: Clock) -> Iterator[Fleet]:
    made = Fleet(engine, pool, Settings(autoscale=2, autoscale_idle_s=IDLE_S), clock)
    yield made
    made._leadership.resign()


def submit(engine: Engine, hardware: str, jobs: int) -> str:
    with engine.begin() as c:
        return ledger.submit(c, *(ledger.cell(hardware=hardware, batch_size=size + 1) for size in range(jobs)))


def joined(engine: Engine, pool: FakePool, device_id: str, hardware: str) -> None:
    with engine.begin() as c:
        ledger.join(c, device_id, hardware_class=hardware)
    pool.add(device_id, hardware, ledger.BOOT)


def test_a_waiting_class_is_asked_for_up_to_the_limit_and_no_longer_than_it_waits(
    fleet: Fleet, pool: FakePool, engine: Engine
) -> None:
    fleet.tick()
    assert pool.requested == [[]], "what an earlier fleet asked for is taken back"
    sweep_id = submit(engine, "t4", 5)
    fleet.tick()
    fleet.tick()
    assert pool.requested[1:] == [[T4, T4]], "once, and not one per job"
    with engine.begin() as c:
        queue.cancel_sweep(c, sweep_id)
    fleet.tick()
    assert pool.requested[2:] == [[]]


def test_a_request_is_repeated_for_a_head_that_may_have_forgotten_it(
    fleet: Fleet, pool: FakePool, engine: Engine, clock: Clock
) -> None:
    submit(engine, "t4", 1)
    fleet.tick()
    clock.now = REPEAT_S
    fleet.tick()
    assert pool.requested == [[T4], [T4]]


def test_an_idle_device_is_let_go_after_a_while_and_wanted_again_when_its_class_waits(
    fleet: Fleet, pool: FakePool, engine: Engine, clock: Clock
) -> None:
    joined(engine, pool, "t4-1", "t4")
    fleet.tick()
    clock.now = IDLE_S - 1
    fleet.tick()
    assert pool.retired == []
    clock.now = IDLE_S
    fleet.tick()
    fleet.tick()
    assert pool.retired == ["t4-1"]
    assert fleet._scaling.wanted(pool.offered.values()) == []
    submit(engine, "t4", 1)
    fleet.tick()
    assert [offer.device_id for offer in fleet._scaling.wanted(pool.offered.values())] == ["t4-1"]
    fleet.tick()
    assert [device for device, _ in pool.started] == ["t4-1"]


def test_a_device_at_work_or_with_work_before_it_is_kept(
    fleet: Fleet, pool: FakePool, engine: Engine, clock: Clock
) -> None:
    joined(engine, pool, "t4-1", "t4")
    joined(engine, pool, "cpu-1", "cpu")
    submit(engine, "t4", 1)
    fleet.tick()
    with engine.begin() as c:
        (lease,) = [device for device in queries.devices(c) if device.job_id is not None]
    assert lease.id == "t4-1"
    clock.now = IDLE_S + 1
    fleet.tick()
    clock.now = 2 * IDLE_S + 2
    fleet.tick()
    assert pool.retired == ["cpu-1"]


def test_a_cluster_that_does_not_scale_is_asked_for_nothing(engine: Engine, pool: FakePool, clock: Clock) -> None:
    fleet = Fleet(engine, pool, Settings(), clock)
    joined(engine, pool, "t4-1", "t4")
    submit(engine, "a100", 3)
    fleet.tick()
    clock.now = 10_000.0
    fleet.tick()
    fleet._leadership.resign()
    assert (pool.requested, pool.retired) == ([], [])


def test_every_class_has_its_own_bundles() -> None:
    assert bundles({"t4": 1, "a100": 3, "cpu": 0}, 2) == [{"effillm_class:a100": 1}, {"effillm_class:a100": 1}, T4]
