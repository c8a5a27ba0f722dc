"""Worker actors in the test's own process, with a real ledger and real children of the engine `simulated`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, make_url

from effillm_server.contract.fingerprint import DeviceDeclaration
from effillm_server.contract.job import Cell, Lease
from effillm_server.ledger import queries, queue
from effillm_server.lifecycle import DeviceState, JobState
from effillm_server.records import DeviceRecord, JobRecord
from effillm_server.settings import Settings
from effillm_worker import fingerprint
from effillm_worker.actor import WorkerActor
from tests.support import ledger
from tests.support.postgres import run_sql
from tests.support.waiting import until

# Enough of a plan for a result, and no more.
QUICK = {"warmup": 3, "iterations": 5, "time_limit_s": 60}
# About a minute with this plan, and progress all the way.
SLOW_MODEL = "simulated/slow-0.5"


def device(device_id: str = "t4-test-0", hardware_class: str = "t4") -> DeviceDeclaration:
    (one,) = fingerprint.declared("test", [(hardware_class, 1)], {})
    return one.model_copy(update={"id": device_id})


def settings(url: str, folder: Path, **changes: Any) -> Settings:
    return Settings.model_validate(
        {"database_url": url, "data_dir": folder / "data", "lock_dir": folder / "locks", "lease_ttl_s": 30.0} | changes
    )


@contextmanager
def running(settings: Settings, declared: DeviceDeclaration | None = None) -> Iterator[WorkerActor]:
    """An actor that is stopped at the end."""
    declared = declared or device()
    actor = WorkerActor(declared.id, settings, declared)
    try:
        yield actor
    finally:
        actor.stop()


def cell(**changes: Any) -> Cell:
    return ledger.cell(**({"hardware": "t4", "model": "simulated/100"} | changes))


def submit(engine: Engine, *cells: Cell, **changes: Any) -> list[int]:
    """Ids of the new sweep's jobs, in order."""
    with engine.begin() as connection:
        sweep_id = ledger.submit(connection, *cells, **({"measurement": QUICK} | changes))
        return [job.id for job in queries.jobs(connection, sweep_id, None, 1000)]


def wait_free(engine: Engine, device_id: str = "t4-test-0") -> None:
    """Until the device may be leased."""
    until(f"{device_id} is free", lambda: of_device(engine, device_id).state is DeviceState.FREE)


def grant(engine: Engine, actor: WorkerActor) -> Lease:
    """Lease the device's next job and start it, as the fleet does."""
    status = actor.status()
    request = queue.LeaseRequest(status["device_id"], status["boot_id"], 30.0)
    with engine.begin() as connection:
        lease = queue.lease(connection, request)
    assert lease is not None
    assert actor.start(lease.model_dump(mode="json"))
    return lease


def wait_state(engine: Engine, job_id: int, *states: JobState, within_s: float = 30.0) -> JobRecord:
    """The job once it is in one of these states."""

    def look() -> JobRecord | None:
        job = of_job(engine, job_id)
        return job if job.state in states else None

    found = until(f"job {job_id} is {' or '.join(states)}: {of_job(engine, job_id)}", look, within_s)
    assert found is not None
    return found


def of_job(engine: Engine, job_id: int) -> JobRecord:
    with engine.begin() as connection:
        job = queries.job(connection, job_id)
    assert job is not None
    return job


def of_device(engine: Engine, device_id: str = "t4-test-0") -> DeviceRecord:
    with engine.begin() as connection:
        found = queries.device(connection, device_id)
    return found if found is not None else _unknown(device_id)


def _unknown(device_id: str) -> DeviceRecord:
    return DeviceRecord(device_id, "", "", 0, True, DeviceState.LOST, "unknown", None, None, None, None, None, None)


@contextmanager
def database_away(maintenance_url: str, database_url: str) -> Iterator[None]:
    """The database refuses every connection and has ended all there were."""
    name = make_url(database_url).database
    run_sql(maintenance_url, f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
    run_sql(maintenance_url, f"SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = '{name}'")
    try:
        yield
    finally:
        run_sql(maintenance_url, f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')
