"""The four-node cluster of the acceptance: two A100s; an RTX 4090 beside a T4; a T4; processors only. Real Ray, real processes."""

from __future__ import annotations

import contextlib
import os
import signal
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import psutil
import pytest
from sqlalchemy import Engine

from effillm_server.ledger import queries, queue
from effillm_server.ledger.engine import connect
from effillm_server.lifecycle import DeviceState, JobState
from effillm_server.records import AttemptRecord
from tests.support.actors import SLOW_MODEL, cell, of_device, of_job, submit, wait_state
from tests.support.postgres import _named, run_sql
from tests.support.processes import lineage
from tests.support.ray_cluster import LoggedProcess, RayCluster, ray_cluster
from tests.support.waiting import until

NODES = {"n1": ["a100:2"], "n2": ["rtx-4090", "t4"], "n3": ["t4"], "n4": ["cpu"]}
DEVICES = {
    "a100-n1-0": "n1", "a100-n1-1": "n1", "rtx-4090-n2-0": "n2", "t4-n2-0": "n2", "t4-n3-0": "n3", "cpu-n4-0": "n4",
}  # fmt: skip
# Six actors start at once, on whatever the machine has left.
PATIENCE_S = 180.0
# Ten generations of four tokens: two seconds.
UNHURRIED = "simulated/slow-0.05"


@dataclass
class Lab:
    """A running cluster with its ledger and its fleets."""

    cluster: RayCluster
    engine: Engine
    fleet: LoggedProcess

    def attempts(self, job_id: int) -> list[AttemptRecord]:
        with self.engine.begin() as connection:
            return queries.attempts(connection, job_id)

    def all_free(self) -> bool:
        """Every device may be leased, and the last warm child has ended."""
        devices = [device_id for device_id, node in DEVICES.items() if node in self.cluster.nodes]
        states = [of_device(self.engine, device_id).state for device_id in devices]
        return all(state is DeviceState.FREE for state in states) and not any(map(self.measuring, devices))

    def measuring(self, device_id: str) -> psutil.Process | None:
        """The process that measures on this device now."""
        for process in psutil.process_iter():
            try:
                mine = process.cwd() == str(self.cluster.data_dir / "work" / device_id)
                if mine and process.cmdline()[-2:] == ["-m", "effillm_worker"]:
                    return process
            except psutil.Error:
                continue
        return None

    def started(self, job_id: int, device_id: str) -> psutil.Process:
        """The measuring process of this job once it has its model."""
        wait_state(self.engine, job_id, JobState.LEASED)
        process = until(f"a child on {device_id}", lambda: self.measuring(device_id))
        until("the model is loaded", lambda: "cell.start" in self.cluster.actor_log())
        return process

    def actor_of(self, device_id: str) -> psutil.Process:
        """The actor behind the measuring process: its supervisor's parent."""
        child = self.measuring(device_id)
        assert child is not None
        actor = psutil.Process(psutil.Process(child.ppid()).ppid())
        assert actor.cmdline()[0].startswith("ray::"), actor.cmdline()
        return actor


@pytest.fixture(scope="module")
def lab(postgres_url: str, template_database: str) -> Iterator[Lab]:
    name = f"lab_{uuid.uuid4().hex[:12]}"
    run_sql(postgres_url, f'CREATE DATABASE "{name}" TEMPLATE "{template_database}" STRATEGY file_copy')
    engine = connect(_named(postgres_url, name), "api")
    with ray_cluster(NODES, _named(postgres_url, name), {"EFFILLM_LEASE_TTL_S": "12"}) as cluster:
        lab = Lab(cluster, engine, cluster.start_fleet("fleet-1"))
        lab.fleet.wait_for("fleet.active")
        until("every device is free", lab.all_free, PATIENCE_S)
        yield lab
    engine.dispose()
    run_sql(postgres_url, f'DROP DATABASE "{name}" WITH (FORCE)')


@pytest.fixture(autouse=True)
def quiet_before_and_after(lab: Lab) -> Iterator[None]:
    """Each test finds every device free, and leaves it so."""
    yield
    until("every device is free again", lab.all_free, PATIENCE_S)


def test_jobs_land_on_the_class_they_ask_for_and_never_two_at_once_on_one_device(lab: Lab) -> None:
    classes = ("a100", "a100", "rtx-4090", "t4", "t4", "cpu")
    cells = [cell(hardware=name, model=f"simulated/{100 + n}", batch_size=size)
             for n, name in enumerate(classes) for size in (1, 2)]  # fmt: skip
    jobs = submit(lab.engine, *cells)
    for job_id in jobs:
        wait_state(lab.engine, job_id, JobState.MEASURED, within_s=PATIENCE_S)
    attempts = {job_id: lab.attempts(job_id) for job_id in jobs}
    assert all(len(tried) == 1 for tried in attempts.values())
    for job_id, one in zip(jobs, cells, strict=True):
        (only,) = attempts[job_id]
        assert of_device(lab.engine, only.device_id).hardware_class == one.hardware
        assert only.node == DEVICES[only.device_id]
    used = {tried[0].device_id for tried in attempts.values()}
    assert used == set(DEVICES), "every device of every class took a part"
    for device_id in used:
        mine = sorted(
            (tried[0] for tried in attempts.values() if tried[0].device_id == device_id), key=lambda a: a.started_at
        )
        for earlier, later in pairwise(mine):
            assert earlier.ended_at is not None
            assert earlier.ended_at <= later.started_at


def test_ray_placed_every_actor_on_the_node_that_offers_its_device(lab: Lab) -> None:
    jobs = submit(lab.engine, cell(hardware="t4", model=SLOW_MODEL), cell(hardware="t4", model=SLOW_MODEL, repeat=2))
    for device_id in ("t4-n2-0", "t4-n3-0"):
        until(f"a child on {device_id}", lambda device_id=device_id: lab.measuring(device_id))
        raylet = lab.actor_of(device_id).parent()
        assert raylet is not None
        assert any(str(lab.cluster.folder / DEVICES[device_id]) in part for part in raylet.cmdline())
    with lab.engine.begin() as connection:
        for job_id in jobs:
            queue.cancel_job(connection, job_id)


def test_a_class_nobody_has_stays_pending_and_says_so(lab: Lab) -> None:
    (job_id,) = submit(lab.engine, cell(hardware="h100"))
    said = until("the fleet says so", lambda: lab.fleet.events("class.missing"))
    assert said[0]["why"] == "no device of class h100"
    with lab.engine.begin() as connection:
        assert "no device of class h100" in queries.explain(connection, job_id)
        assert of_job(lab.engine, job_id).state is JobState.PENDING
        queue.cancel_job(connection, job_id)


def test_a_killed_actor_takes_its_child_with_it_and_the_job_is_tried_again(lab: Lab) -> None:
    (job_id,) = submit(lab.engine, cell(hardware="rtx-4090", model=UNHURRIED))
    child = lab.started(job_id, "rtx-4090-n2-0")
    supervisor, actor = psutil.Process(child.ppid()), lab.actor_of("rtx-4090-n2-0")
    actor.kill()
    _, alive = psutil.wait_procs([actor, supervisor, child], timeout=5)
    assert alive == []
    done = wait_state(lab.engine, job_id, JobState.MEASURED, within_s=75)
    assert (done.faults, done.fence) == (1, 2)
    first, second = lab.attempts(job_id)
    assert (first.reason, second.outcome) == ("lost", "measured")


def test_a_new_fleet_adopts_what_runs_and_starts_nothing_twice(lab: Lab) -> None:
    boots = {device_id: of_device(lab.engine, device_id).boot_id for device_id in DEVICES}
    (job_id,) = submit(lab.engine, cell(hardware="t4", model="simulated/slow-0.1"))
    wait_state(lab.engine, job_id, JobState.LEASED)
    lab.fleet.stop(signal.SIGKILL)
    lab.fleet = lab.cluster.start_fleet("fleet-2")
    lab.fleet.wait_for("fleet.active")
    wait_state(lab.engine, job_id, JobState.MEASURED, within_s=60)
    assert len(lab.attempts(job_id)) == 1
    until("all are adopted", lambda: len(lab.fleet.events("actor.adopted")) == len(DEVICES))
    assert lab.fleet.events("actor.made") == []
    assert {device_id: of_device(lab.engine, device_id).boot_id for device_id in DEVICES} == boots
    (next_job,) = submit(lab.engine, cell(hardware="a100"))
    wait_state(lab.engine, next_job, JobState.MEASURED)


def test_a_cancelled_job_ends_at_once_and_its_device_is_free_again(lab: Lab) -> None:
    (job_id,) = submit(lab.engine, cell(hardware="cpu", model=SLOW_MODEL))
    child = lab.started(job_id, "cpu-n4-0")
    with lab.engine.begin() as connection:
        assert queue.cancel_job(connection, job_id) is JobState.CANCELLED
    _, alive = psutil.wait_procs([child], timeout=8)
    assert alive == []
    until("the device is free", lambda: of_device(lab.engine, "cpu-n4-0").state is DeviceState.FREE)


def test_a_second_fleet_stands_by_and_takes_over(lab: Lab) -> None:
    second = lab.cluster.start_fleet("fleet-3")
    second.wait_for("fleet.standby")
    assert second.events("fleet.active") == []
    first, lab.fleet = lab.fleet, second
    assert first.stop(signal.SIGTERM) == 0
    second.wait_for("fleet.active")
    (job_id,) = submit(lab.engine, cell(hardware="t4"))
    wait_state(lab.engine, job_id, JobState.MEASURED)


def test_one_warm_group_wastes_less_than_a_tenth_of_a_second_between_cells(lab: Lab) -> None:
    jobs = submit(lab.engine, *(cell(hardware="a100", batch_size=size) for size in range(1, 9)))
    for job_id in jobs:
        wait_state(lab.engine, job_id, JobState.MEASURED)
    attempts = sorted((lab.attempts(job_id)[0] for job_id in jobs), key=lambda one: (one.device_id, one.started_at))
    gaps = [
        (later.started_at - earlier.ended_at).total_seconds()
        for earlier, later in pairwise(attempts)
        if earlier.ended_at is not None and earlier.device_id == later.device_id
    ]
    assert len(gaps) >= len(jobs) - 2
    assert sorted(gaps)[len(gaps) // 2] < 0.1, f"seconds between leases of one group: {gaps}"


def test_nothing_of_ours_runs_as_another_process_than_the_cluster_knows(lab: Lab) -> None:
    """After all that: no measuring process, no supervisor, and each remaining process belongs to a node or the fleet."""
    roots = {node.process.pid for node in lab.cluster.nodes.values()} | {lab.fleet.process.pid, os.getpid()}
    until("no child is left", lambda: not [d for d in DEVICES if lab.measuring(d)])
    until("no process is a stray", lambda: not [one for one in lab.cluster.processes() if not roots & lineage(one)])


def test_a_job_goes_to_another_device_of_its_class_when_its_node_is_lost(lab: Lab) -> None:
    (job_id,) = submit(lab.engine, cell(hardware="t4", model=UNHURRIED))
    held = wait_state(lab.engine, job_id, JobState.LEASED).device_id
    assert held is not None
    name = DEVICES[held]
    until(f"a child on {held}", lambda: lab.measuring(held))
    node = lab.cluster.nodes[name]
    for process in [*psutil.Process(node.process.pid).children(recursive=True), psutil.Process(node.process.pid)]:
        with contextlib.suppress(psutil.NoSuchProcess):  # one ends by itself as soon as its parent is gone
            if "effillm_worker/supervisor.py" not in " ".join(process.cmdline()):
                process.kill()
    node.process.wait(10)
    done = wait_state(lab.engine, job_id, JobState.MEASURED, within_s=75)
    final = lab.attempts(job_id)[-1]
    assert (final.fence, done.faults) == (done.result_fence, 1)
    assert DEVICES[final.device_id] != name
    until("the device is lost", lambda: of_device(lab.engine, held).state is DeviceState.LOST)
    del lab.cluster.nodes[name]
