from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta

import pytest
from sqlalchemy import Engine, text

from effillm_server.ledger import queries, queue
from effillm_server.ledger.engine import connect
from effillm_server.lifecycle import DeviceState, JobState
from effillm_server.settings import Settings
from effillm_worker.fleet.loop import HEAD_LOST_S, Fleet
from effillm_worker.fleet.offers import Offer
from tests.support import ledger
from tests.support.actors import database_away, of_device, of_job
from tests.support.clock import a_clock_off_by
from tests.support.fake_pool import FakePool

TTL_S = 30.0


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
    made = Fleet(engine, pool, Settings(lease_ttl_s=TTL_S), clock)
    yield made
    made._leadership.resign()


def join(engine: Engine, pool: FakePool, device_id: str = "cpu-1", hardware_class: str = "cpu") -> None:
    """A device that is attested and idle, in the ledger and on the cluster."""
    with engine.begin() as connection:
        ledger.join(connection, device_id, hardware_class=hardware_class)
    pool.add(device_id, hardware_class, ledger.BOOT)


def submit(engine: Engine, *hardware: str) -> list[int]:
    cells = [ledger.cell(hardware=name, batch_size=size + 1) for size, name in enumerate(hardware)]
    with engine.begin() as connection:
        sweep_id = ledger.submit(connection, *cells)
        return [job.id for job in queries.jobs(connection, sweep_id, None, 100)]


def silent_for(engine: Engine, device_id: str, seconds: float) -> None:
    """Let the device's last sign of life lie this far back."""
    past = text("UPDATE device SET last_seen = clock_timestamp() - make_interval(secs => :s) WHERE id = :id")
    with engine.begin() as connection:
        connection.execute(past, {"s": seconds, "id": device_id})


def events(capsys: pytest.CaptureFixture[str], name: str) -> list[dict[str, object]]:
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    return [line for line in lines if line["event"] == name]


def test_a_free_device_gets_a_job_of_its_class_and_no_other(fleet: Fleet, pool: FakePool, engine: Engine) -> None:
    join(engine, pool, "cpu-1", "cpu")
    join(engine, pool, "t4-1", "t4")
    _, of_t4 = submit(engine, "a100", "t4")
    assert fleet.tick()
    assert [(device, lease.job_id) for device, lease in pool.started] == [("t4-1", of_t4)]


def test_a_device_that_is_measuring_gets_no_second_job(fleet: Fleet, pool: FakePool, engine: Engine) -> None:
    join(engine, pool)
    submit(engine, "cpu", "cpu")
    fleet.tick()
    ((_, lease),) = pool.started
    pool.add("cpu-1", "cpu", ledger.BOOT, job_id=lease.job_id, fence=lease.fence)
    fleet.tick()
    assert len(pool.started) == 1


def test_a_lease_its_actor_never_heard_of_is_handed_over_again_under_the_same_fence(
    fleet: Fleet, pool: FakePool, engine: Engine
) -> None:
    join(engine, pool)
    submit(engine, "cpu", "cpu")
    fleet.tick()
    fleet.tick()
    (_, first), (_, again) = pool.started
    assert (first.job_id, first.fence) == (again.job_id, again.fence)


def test_an_actor_of_another_boot_than_the_ledgers_gets_nothing(fleet: Fleet, pool: FakePool, engine: Engine) -> None:
    join(engine, pool)
    pool.add("cpu-1", "cpu", "an older boot")
    submit(engine, "cpu")
    fleet.tick()
    assert pool.started == []


def test_a_fleet_that_stands_by_leases_nothing_until_the_other_is_gone(
    fleet: Fleet, pool: FakePool, engine: Engine
) -> None:
    active = Fleet(engine, FakePool(offered={"cpu-1": Offer("cpu-1", "cpu")}), Settings(lease_ttl_s=TTL_S))
    assert active.tick()
    join(engine, pool)
    submit(engine, "cpu")
    assert not fleet.tick()
    assert pool.started == []
    active._leadership.resign()
    assert fleet.tick()
    assert len(pool.started) == 1


def test_a_silent_device_whose_node_is_gone_is_lost_and_its_job_waits_for_another(
    fleet: Fleet, pool: FakePool, engine: Engine
) -> None:
    join(engine, pool)
    (job_id,) = submit(engine, "cpu")
    fleet.tick()
    assert of_job(engine, job_id).state is JobState.LEASED
    pool.offered.clear()
    silent_for(engine, "cpu-1", TTL_S / 2 + 1)
    fleet.tick()
    found = of_device(engine, "cpu-1")
    assert (found.state, found.reason) == (DeviceState.LOST, "its node box is not in the Ray cluster")
    assert of_job(engine, job_id).state is JobState.PENDING


def test_an_actor_that_outlives_its_place_in_the_cluster_keeps_its_job_while_it_gives_signs_of_life(
    fleet: Fleet, pool: FakePool, engine: Engine
) -> None:
    join(engine, pool)
    (job_id,) = submit(engine, "cpu")
    fleet.tick()
    pool.offered.clear()
    silent_for(engine, "cpu-1", TTL_S / 2 - 2)
    fleet.tick()
    assert of_device(engine, "cpu-1").state is DeviceState.LEASED
    assert of_job(engine, job_id).state is JobState.LEASED


def test_a_cancelled_jobs_actor_is_told_once_to_look(fleet: Fleet, pool: FakePool, engine: Engine) -> None:
    join(engine, pool)
    (job_id,) = submit(engine, "cpu")
    fleet.tick()
    pool.add("cpu-1", "cpu", ledger.BOOT, job_id=job_id, fence=1)
    with engine.begin() as connection:
        queue.cancel_job(connection, job_id)
    fleet.tick()
    fleet.tick()
    assert pool.checked == ["cpu-1"]


def test_a_class_nobody_has_is_said_once_and_again_when_it_is_there(
    fleet: Fleet, pool: FakePool, engine: Engine, capsys: pytest.CaptureFixture[str]
) -> None:
    (job_id,) = submit(engine, "h100")
    fleet.tick()
    fleet.tick()
    (said,) = events(capsys, "class.missing")
    assert (said["hardware_class"], said["jobs"], said["why"]) == ("h100", 1, "no device of class h100")
    with engine.begin() as connection:
        assert "no device of class h100" in queries.explain(connection, job_id)
    join(engine, pool, "h100-1", "h100")
    fleet.tick()
    assert len(events(capsys, "class.there")) == 1


def test_expired_leases_are_taken_back_one_time_to_live_after_the_fleets_start(
    engine: Engine, pool: FakePool, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    fleet = Fleet(engine, pool, Settings(lease_ttl_s=0.2), clock)
    join(engine, pool)
    (job_id,) = submit(engine, "cpu")
    fleet.tick()
    with engine.begin() as connection:
        ledger.expire(connection, job_id)
    pool.answers.clear()
    clock.now = 1.0
    fleet.tick()
    assert of_job(engine, job_id).state is JobState.LEASED
    with engine.begin() as connection:
        began = queue.database_time(connection)
        while (queue.database_time(connection) - began).total_seconds() < 0.2:
            pass
    clock.now = 2.0
    fleet.tick()
    assert of_job(engine, job_id).state is JobState.PENDING
    assert events(capsys, "lease.expired")[-1]["job"] == job_id
    fleet._leadership.resign()


def test_a_fleet_ends_a_minute_after_its_head_and_not_before(fleet: Fleet, pool: FakePool, clock: Clock) -> None:
    pool.reachable = False
    clock.now = HEAD_LOST_S - 1
    assert fleet._has_head()
    clock.now = HEAD_LOST_S
    assert fleet.run() == 1
    pool.reachable = True
    assert fleet._has_head()


def test_a_fleet_told_to_stop_ends_in_peace(fleet: Fleet) -> None:
    fleet.stop()
    assert fleet.run() == 0


def test_an_absent_database_makes_a_fleet_stand_by_and_go_on_afterwards(
    fleet: Fleet, pool: FakePool, engine: Engine, postgres_url: str, database_url: str
) -> None:
    join(engine, pool)
    assert fleet.tick()
    with database_away(postgres_url, database_url):
        assert not fleet.tick()
    submit(engine, "cpu")
    assert fleet.tick()
    assert len(pool.started) == 1


def test_an_error_of_rays_ends_the_fleet_only_when_it_lasts(
    fleet: Fleet, pool: FakePool, clock: Clock, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken() -> dict[str, Offer]:
        raise RuntimeError("the table of nodes cannot be read")

    monkeypatch.setattr(pool, "offers", broken)
    assert fleet.tick()
    assert "the table of nodes cannot be read" in str(events(capsys, "tick.error")[0]["error"])
    clock.now = HEAD_LOST_S - 1
    assert fleet._has_head()
    clock.now = HEAD_LOST_S
    assert not fleet._has_head()
    monkeypatch.undo()
    assert fleet.tick()
    assert fleet._has_head()


def test_a_clock_that_is_off_is_said_once_and_breaks_nothing(
    fleet: Fleet, pool: FakePool, engine: Engine, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    join(engine, pool)
    submit(engine, "cpu")

    monkeypatch.setattr("effillm_server.ledger.clock.datetime", a_clock_off_by(timedelta(minutes=5)))
    fleet.tick()
    fleet.tick()
    (said,) = events(capsys, "clock.off")
    assert "clock is 300 s ahead of the database's: set it by NTP" in str(said["why"])
    assert {device for device, _ in pool.started} == {"cpu-1"}
