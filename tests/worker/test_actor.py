from __future__ import annotations

import fcntl
import json
import subprocess
import sys
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
from sqlalchemy import Engine, text

from effillm_server import runtimes
from effillm_server.contract.outcome import Fault, FaultKind
from effillm_server.ledger import queries, queue
from effillm_server.ledger.engine import connect
from effillm_server.lifecycle import DeviceState, JobState
from effillm_server.records import JobRecord
from effillm_worker import ceilings, isolate
from effillm_worker.actor import WorkerActor
from effillm_worker.spool import Spool, Spooled
from tests.support import isolation
from tests.support.actors import (
    SLOW_MODEL,
    cell,
    database_away,
    grant,
    of_device,
    of_job,
    running,
    settings,
    submit,
    wait_free,
    wait_state,
)
from tests.support.clock import a_clock_off_by
from tests.support.processes import command
from tests.support.waiting import until


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    made = connect(database_url, "api")
    yield made
    made.dispose()


@pytest.fixture
def actor(database_url: str, tmp_path: Path, engine: Engine) -> Iterator[WorkerActor]:
    with running(settings(database_url, tmp_path)) as made:
        wait_free(engine)
        yield made


def children() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


def measuring() -> list[psutil.Process]:
    return [child for child in children() if command(child)[-2:] == ["-m", "effillm_worker"]]


def released(engine: Engine, job_id: int) -> dict[str, Any] | None:
    """The record of the job's child once its last reading is in it."""
    with engine.begin() as connection:
        result = queries.result(connection, job_id)
    return result.child if result is not None and result.child and result.child["released"] else None


def child_of(engine: Engine, job_id: int) -> str:
    with engine.begin() as connection:
        result = queries.result(connection, job_id)
    assert result is not None
    assert result.child is not None
    return str(result.child["id"])


def test_a_new_actor_attests_its_device_and_says_what_it_is(actor: WorkerActor, engine: Engine) -> None:
    found = of_device(engine)
    assert (found.state, found.boot_id) == (DeviceState.FREE, actor.status()["boot_id"])
    assert found.fingerprint_digest is not None
    assert found.ceiling is None  # of a declared device there is nothing to measure


def test_an_actor_whose_boxs_clock_is_off_says_so_once_and_serves(
    database_url: str,
    tmp_path: Path,
    engine: Engine,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("effillm_server.ledger.clock.datetime", a_clock_off_by(timedelta(minutes=5)))
    with running(settings(database_url, tmp_path)) as actor:
        wait_free(engine)
        for _ in range(2):  # a cancelled job makes the actor settle once more
            (job_id,) = submit(engine, cell(model=SLOW_MODEL))
            grant(engine, actor)
            with engine.begin() as connection:
                queue.cancel_job(connection, job_id)
            actor.check()
            wait_state(engine, job_id, JobState.CANCELLED)
            until("the actor is idle", lambda: actor.status()["job_id"] is None)
            wait_free(engine)
    (said,) = (json.loads(line) for line in capsys.readouterr().err.splitlines() if '"clock.off"' in line)
    assert said["device"] == "t4-test-0"
    assert "clock is 300 s ahead of the database's: set it by NTP" in said["why"]


def test_a_lease_starts_at_once_and_is_measured_and_delivered(actor: WorkerActor, engine: Engine) -> None:
    (job_id,) = submit(engine, cell(model="simulated/slow-0.02"))
    lease = grant(engine, actor)
    assert of_job(engine, job_id).state is JobState.LEASED  # answered before it is measured
    done = wait_state(engine, job_id, JobState.MEASURED)
    assert (done.result_fence, done.faults) == (lease.fence, 0)
    wait_free(engine)
    assert list((Path(actor._settings.data_dir) / "spool" / "t4-test-0").iterdir()) == []


def test_a_lease_that_arrives_again_after_its_delivery_is_not_measured_again(
    actor: WorkerActor, engine: Engine
) -> None:
    (job_id,) = submit(engine, cell())
    lease = grant(engine, actor)
    wait_state(engine, job_id, JobState.MEASURED)
    until("the actor is idle", lambda: actor.status()["job_id"] is None)
    assert not actor.start(lease.model_dump(mode="json"))
    assert actor.status()["job_id"] is None


def test_the_cells_of_a_group_are_measured_in_one_child_each_lease_with_the_last_report(
    actor: WorkerActor, engine: Engine
) -> None:
    jobs = submit(engine, *(cell(batch_size=size) for size in (1, 2, 4)))
    grant(engine, actor)
    for job_id in jobs:
        wait_state(engine, job_id, JobState.MEASURED)
    assert len({child_of(engine, job_id) for job_id in jobs}) == 1
    record = until("the child has ended in order", lambda: released(engine, jobs[0]))
    assert record["cells_measured"] == 3
    assert measuring() == []


def test_another_group_gets_a_child_of_its_own(actor: WorkerActor, engine: Engine) -> None:
    jobs = submit(engine, cell(), cell(model="simulated/200"))
    grant(engine, actor)
    for job_id in jobs:
        wait_state(engine, job_id, JobState.MEASURED)
    assert len({child_of(engine, job_id) for job_id in jobs}) == 2


def test_isolation_by_cell_gives_every_cell_a_child_and_its_complete_record(actor: WorkerActor, engine: Engine) -> None:
    jobs = submit(engine, cell(), cell(batch_size=2), isolation="cell")
    grant(engine, actor)
    for job_id in jobs:
        wait_state(engine, job_id, JobState.MEASURED)
        record = released(engine, job_id)
        assert record is not None
        assert record["cells_measured"] == 1
    assert len({child_of(engine, job_id) for job_id in jobs}) == 2


def test_status_answers_while_a_cell_is_measured_and_a_second_lease_is_turned_away(
    actor: WorkerActor, engine: Engine
) -> None:
    (job_id,) = submit(engine, cell(model=SLOW_MODEL))
    lease = grant(engine, actor)
    until("the child measures", lambda: actor.status()["group"] == lease.load_group)
    assert (actor.status()["job_id"], actor.status()["fence"]) == (job_id, lease.fence)
    assert actor.start(lease.model_dump(mode="json"))
    assert not actor.start(lease.model_copy(update={"job_id": job_id + 1}).model_dump(mode="json"))


def test_a_cancelled_job_ends_its_child_and_the_device_is_free_once_attested(
    actor: WorkerActor, engine: Engine
) -> None:
    (job_id,) = submit(engine, cell(model=SLOW_MODEL))
    grant(engine, actor)
    until("the child measures", measuring)
    with engine.begin() as connection:
        assert queue.cancel_job(connection, job_id) is JobState.CANCELLED
    assert of_device(engine).state is DeviceState.RELEASING
    actor.check()
    wait_free(engine)
    assert children() == []
    assert of_job(engine, job_id).state is JobState.CANCELLED


def test_a_crashed_child_is_a_fault_of_its_job_and_the_next_job_gets_a_fresh_one(
    actor: WorkerActor, engine: Engine
) -> None:
    crash, fine = submit(engine, cell(model="simulated/crash"), cell(model="simulated/100"))
    grant(engine, actor)
    until("the crash counts", lambda: of_job(engine, crash).faults >= 1)
    wait_state(engine, fine, JobState.MEASURED)


def test_an_unknown_runtime_is_an_answer_that_names_those_there_are(
    database_url: str, tmp_path: Path, engine: Engine
) -> None:
    with running(settings(database_url, tmp_path, runtimes={"old": "/nowhere/python"})) as actor:
        wait_free(engine)
        first, second = submit(engine, cell(runtime="older"), cell(runtime="old"))
        grant(engine, actor)
        for job_id in (first, second):
            assert wait_state(engine, job_id, JobState.INFEASIBLE).reason == "unsupported"
    assert "there are: default, old" in str(of_job(engine, first).message)
    assert "/nowhere/python, which is not on this node" in str(of_job(engine, second).message)


def test_a_runtime_that_lacks_a_package_is_an_answer_that_names_it(
    database_url: str, tmp_path: Path, engine: Engine
) -> None:
    """Made and registered while the actor lives, in a file below its data directory."""
    venv.create(tmp_path / "bare", with_pip=False, symlinks=True)
    own = settings(database_url, tmp_path)
    with running(own) as actor:
        wait_free(engine)
        runtimes.register(own.data_dir, "bare", tmp_path / "bare" / "bin" / "python")
        (job_id,) = submit(engine, cell(runtime="bare"))
        grant(engine, actor)
        assert wait_state(engine, job_id, JobState.INFEASIBLE).reason == "unsupported"
    assert "runtime 'bare' on node" in str(of_job(engine, job_id).message)
    assert "lacks pydantic, pyyaml" in str(of_job(engine, job_id).message)


def test_a_device_whose_lock_is_held_stays_quarantined_with_the_reason_until_it_is_free(
    database_url: str, tmp_path: Path, engine: Engine
) -> None:
    (tmp_path / "locks").mkdir()
    with (tmp_path / "locks/t4-test-0.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with running(settings(database_url, tmp_path)):
            until("the reason shows", lambda: "still holds the device" in str(of_device(engine).reason))
            assert of_device(engine).state is DeviceState.QUARANTINED
            fcntl.flock(lock, fcntl.LOCK_UN)
            wait_free(engine)


def test_an_outcome_left_in_the_spool_is_delivered_by_the_next_actor(
    database_url: str, tmp_path: Path, engine: Engine
) -> None:
    these = settings(database_url, tmp_path)
    with running(these) as first:
        wait_free(engine)
        (job_id,) = submit(engine, cell())
        status = first.status()
        with engine.begin() as connection:
            lease = queue.lease(connection, queue.LeaseRequest("t4-test-0", status["boot_id"], 30.0))
        assert lease is not None
    spooled = Spooled(
        device_id="t4-test-0", boot_id=status["boot_id"], job_id=job_id, fence=lease.fence,
        outcome=Fault(fault=FaultKind.CRASHED, message="what the first actor saw"),
    )  # fmt: skip
    spool = Spool(these.data_dir / "spool" / "t4-test-0")
    spool.add(spooled)
    with running(these):
        until("the spool is empty", lambda: not list(spool.entries()))
        with engine.begin() as connection:
            (attempt,) = queries.attempts(connection, job_id)
    assert (attempt.reason, attempt.message) == ("crashed", "what the first actor saw")
    assert of_job(engine, job_id).faults == 1


def test_a_measurement_goes_on_while_the_database_is_away_and_is_delivered_when_it_is_back(
    actor: WorkerActor, engine: Engine, postgres_url: str, database_url: str
) -> None:
    (job_id,) = submit(engine, cell(model="simulated/slow-0.02"))
    lease = grant(engine, actor)
    until("the child measures", measuring)
    spool = Spool(actor._settings.data_dir / "spool" / "t4-test-0")
    with database_away(postgres_url, database_url):
        (waiting,) = until("the outcome is on disk", lambda: list(spool.entries()))
        assert (waiting.job_id, waiting.fence, waiting.outcome.kind) == (job_id, lease.fence, "measured")
        assert actor.status()["phase"] == "delivering"
    done = wait_state(engine, job_id, JobState.MEASURED)
    assert (done.result_fence, done.faults) == (lease.fence, 0)
    until("the spool is empty", lambda: not list(spool.entries()))


def test_a_device_marked_lost_is_attested_again(actor: WorkerActor, engine: Engine) -> None:
    with engine.begin() as connection:
        queue.mark_lost(connection, "t4-test-0", "its node was away")
    wait_free(engine)


def test_a_superseded_actor_leaves_the_device_to_the_younger_one(
    actor: WorkerActor, database_url: str, tmp_path: Path, engine: Engine
) -> None:
    with running(settings(database_url, tmp_path)) as younger:
        until("the younger speaks", lambda: of_device(engine).boot_id == younger.status()["boot_id"])
        until("the older is silent", lambda: actor.status()["phase"] == "superseded")
        wait_free(engine)
        assert of_device(engine).boot_id == younger.status()["boot_id"]


def test_a_stopped_actor_leaves_its_job_to_be_tried_again(database_url: str, tmp_path: Path, engine: Engine) -> None:
    with running(settings(database_url, tmp_path)) as actor:
        wait_free(engine)
        (job_id,) = submit(engine, cell(model=SLOW_MODEL))
        grant(engine, actor)
        until("the child measures", measuring)
    assert children() == []
    assert of_job(engine, job_id).state is JobState.LEASED


@contextmanager
def spinning() -> Iterator[None]:
    """Two processes that do nothing else."""
    spinners = [subprocess.Popen([sys.executable, "-I", "-c", "while True: pass"]) for _ in range(2)]
    try:
        yield
    finally:
        for spinner in spinners:
            spinner.kill()
            spinner.wait()


def test_a_row_measured_under_load_turns_invalid_and_is_measured_again(
    database_url: str, tmp_path: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From lease to ledger with real processes; only what the child computes is a stand-in.

    The last attempt's verdict is left open: on a busy machine it is measured under somebody else's load.
    """
    monkeypatch.setattr(isolate, "CHILD_MODULE", "tests.support.children.long")
    monkeypatch.setattr(ceilings, "measure", lambda *_: {"copy_bytes_s": 1e10})
    box = isolation.device()
    with running(settings(database_url, tmp_path), box) as actor:
        wait_free(engine, box.id)
        with spinning():
            (job_id,) = submit(engine, isolation.CELL)
            grant(engine, actor)
            first = until("it is to be measured again", lambda: again(of_job(engine, job_id)), 60)
        done = until("it is measured", lambda: offered(engine, actor, job_id), 90)
    with engine.begin() as connection:
        rows = connection.execute(text("SELECT fence, verdict, reasons FROM measurement ORDER BY fence")).all()
    assert (first.verdict, first.result_fence) == ("invalid", rows[0].fence)
    assert len(rows) == done.remeasures + 1
    assert done.remeasures in (1, 2)
    assert all(row.verdict == "invalid" for row in rows[:-1])
    assert any(reason.startswith("other_processes: they used") for reason in rows[0].reasons)
    assert (done.result_fence, done.verdict) == (rows[-1].fence, rows[-1].verdict)


def offered(engine: Engine, actor: WorkerActor, job_id: int) -> JobRecord | None:
    """The job once it is measured; while it waits its device is offered to it, as the fleet does."""
    job = of_job(engine, job_id)
    if job.state is JobState.PENDING and actor.status()["job_id"] is None:
        grant(engine, actor)
    return job if job.state is JobState.MEASURED else None


def again(job: JobRecord) -> JobRecord | None:
    return job if job.remeasures else None
