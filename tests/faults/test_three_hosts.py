"""A lab in small: three hosts, each a network namespace behind a cable of its own, join this box's head as `effillm node`."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import ray
from sqlalchemy import create_engine, make_url
from sqlalchemy.pool import NullPool

from effillm_server.ledger import queries, queue, roles
from effillm_server.lifecycle import DeviceState, JobState
from effillm_server.ports import free_port
from effillm_worker import head
from tests.support.actors import cell, of_device, submit, wait_state
from tests.support.faults import tree
from tests.support.faults.database import Database
from tests.support.faults.lab import Kept
from tests.support.faults.network import Cable, is_possible
from tests.support.waiting import until

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]

HOSTS = ("one", "two", "three")
TTL_S = 6.0
# Some ten seconds with the plan of `submit`, and progress all the way.
UNHURRIED = "simulated/slow-0.1"


@dataclass
class Lab:
    folder: Path
    database: Database
    database_port: int
    head_port: int
    cables: dict[str, Cable]
    kept: dict[str, Kept] = field(default_factory=dict)

    def start(self, name: str, command: list[str], database: str, **environment: str) -> Kept:
        base = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "EFFILLM_"))}
        given = {
            **base, "EFFILLM_TEST": str(self.folder), "EFFILLM_LEASE_TTL_S": str(TTL_S), "EFFILLM_DATABASE_URL": database,
            "EFFILLM_DATA_DIR": str(self.folder / name), "EFFILLM_LOCK_DIR": str(self.folder / "locks" / name), **environment,
        }  # fmt: skip
        self.kept[name] = Kept(name, command, given, self.folder / f"{name}.log")
        self.kept[name].start()
        return self.kept[name]

    def join(self, host: str, *, program: tuple[str, ...] = ("-m", "effillm_server.cli", "node")) -> Kept:
        """The one command by which a box joins, given on that host, with the host's own login to the database."""
        cable = self.cables[host]
        url = make_url((self.folder / f"url-{host}").read_text())
        there = url.set(host=cable.here, port=self.database_port, query={}).render_as_string(hide_password=False)
        command = [
            *cable.command(), sys.executable, *program, "--address", f"{cable.here}:{self.head_port}", "--declare", "t4",
            "--name", host, "--token-file", str(self.folder / "head/ray-token"), "--temp-dir", str(self.folder / f"r-{host}"),
        ]  # fmt: skip
        return self.start(host, command, there)

    def said(self, name: str, event: str, within_s: float = 120.0) -> None:
        until(f"{name} says {event}:\n{self.log(name)}", lambda: self.kept[name].said(event), within_s)

    def log(self, name: str) -> str:
        return self.kept[name].log.read_text(errors="replace")[-3000:]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    assert is_possible(), "this test needs root and `ip`, for network namespaces"
    folder = Path(tempfile.mkdtemp(prefix="ef-", dir="/tmp"))
    folder.chmod(0o755)
    port = free_port()
    database = Database(folder / "db", tcp_port=port)
    made = Lab(folder, database, port, free_port(), {host: Cable() for host in HOSTS})
    logins = [roles.parse_login(f"node:{host}={folder / f'url-{host}'}") for host in HOSTS]
    roles.secure(database.url, [*logins, roles.parse_login(f"fleet={folder / 'url-fleet'}")])
    try:
        command = [
            sys.executable, "-m", "effillm_worker.fleet", "--node", "--head", "--port", str(made.head_port), "--no-devices",
            "--name", "head", "--temp-dir", str(folder / "r-head"),
        ]  # fmt: skip
        made.start(
            "head", command, (folder / "url-fleet").read_text(), EFFILLM_RAY_ADDRESS=f"127.0.0.1:{made.head_port}"
        )
        made.said("head", "fleet.active")
        yield made
    finally:
        end(made)


def end(lab: Lab) -> None:
    for name in reversed(lab.kept):
        one = lab.kept[name]
        if one.is_running:
            os.kill(one.pid, signal.SIGTERM)
    for one in lab.kept.values():
        assert one.process is not None
        try:
            one.process.wait(40)
        except subprocess.TimeoutExpired:
            tree.kill_at_once(tree.below(one.pid))
            one.process.wait(10)
    lab.database.close()
    for cable in lab.cables.values():
        cable.remove()
    until("nothing of the lab runs any more", lambda: not tree.marked(lab.folder))
    shutil.rmtree(lab.folder, ignore_errors=True)


def test_two_hosts_measure_one_is_cut_off_and_comes_back(lab: Lab) -> None:
    for host in ("one", "two"):
        lab.join(host)
    for host in ("one", "two"):
        lab.said(host, "node.ready")
    engine = create_engine(make_url(lab.database.url).set(drivername="postgresql+psycopg2"), poolclass=NullPool)
    devices = {host: f"t4-{host}-0" for host in ("one", "two")}

    def states() -> dict[str, DeviceState]:
        with engine.begin() as c:
            return {device.id: device.state for device in queries.devices(c)}

    free = dict.fromkeys(devices.values(), DeviceState.FREE)
    until("both devices are free", lambda: states() == free, 120)
    jobs = submit(engine, *(cell(model=UNHURRIED, repeat=repeat) for repeat in (1, 2)))
    held = {
        host: until(f"{host} measures", lambda host=host: of_device(engine, devices[host]).job_id, 60)
        for host in devices
    }
    assert set(held.values()) == set(jobs)

    lab.cables["two"].unplug()
    until("the cut-off host's device is lost", lambda: states()[devices["two"]] is DeviceState.LOST, 120)
    for job_id in jobs:
        wait_state(engine, job_id, JobState.MEASURED, within_s=180)
    with engine.begin() as c:
        assert queries.attempts(c, held["two"])[-1].device_id == devices["one"]
        assert len(queries.attempts(c, held["one"])) == 1, "the other host did not notice"

    lab.cables["two"].plug_in()
    until("its device is free again", lambda: states() == free, 240)
    # Enough for the other host to be busy until this one is spoken to again.
    many = submit(engine, *(cell(model=UNHURRIED, repeat=repeat) for repeat in range(1, 41)))
    taken = until("it measures again", lambda: of_device(engine, devices["two"]).job_id, 240)
    wait_state(engine, taken, JobState.MEASURED, within_s=60)
    with engine.begin() as c:
        assert queries.attempts(c, taken)[-1].device_id == devices["two"]
        job = queries.job(c, many[0])
        assert job is not None
        queue.cancel_sweep(c, job.sweep_id)
    until("both devices are free in the end", lambda: states() == free, 120)
    engine.dispose()


def test_a_host_with_another_ray_is_refused(lab: Lab) -> None:
    """Its word about its version is changed; a second Ray would have to be installed otherwise."""
    older = "import sys, ray; ray.__version__ = '2.59.0'; from effillm_worker.node import main; sys.exit(main(sys.argv[1:]))"
    refused = lab.join("three", program=("-c", older))
    assert refused.process is not None
    assert refused.process.wait(60) == 2
    assert f"Ray is 2.59.0 here and {ray.__version__} on the head" in lab.log("three")
    assert "install ray==" in lab.log("three")


def test_a_host_without_the_token_is_refused(lab: Lab, tmp_path: Path) -> None:
    other = head.ensure_token(tmp_path / "token")
    cable = lab.cables["three"]
    done = subprocess.run(
        [*cable.command(), sys.executable, "-m", "effillm_server.cli", "node", "--address", f"{cable.here}:{lab.head_port}",
         "--declare", "t4", "--token-file", str(other)],
        env={**os.environ, "EFFILLM_DATABASE_URL": "postgresql://x@127.0.0.1:1/x", "EFFILLM_DATA_DIR": str(tmp_path)},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2
    assert "refuses our token" in done.stderr
