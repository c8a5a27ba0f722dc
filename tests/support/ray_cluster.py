"""A real Ray cluster of several nodes on one machine, started by `effillm_worker.node`, gone without a trace afterwards."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from effillm_server.ports import free_port
from tests.support.waiting import until


class LoggedProcess:
    """A Python module run as a process; its output, JSON lines among others, is kept in two files."""

    def __init__(self, name: str, module: str, arguments: Sequence[str], environment: Mapping[str, str], folder: Path):
        self.name = name
        # Files of its own for every start: what an earlier one said is not said again.
        stem = f"{name}-{uuid.uuid4().hex[:6]}"
        self._out, self._err = folder / f"{stem}.out", folder / f"{stem}.err"
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
            )

    def events(self, name: str) -> list[dict[str, Any]]:
        """The structured lines with this event name so far, from both outputs."""
        lines = [*self._out.read_text().splitlines(), *self._err.read_text(errors="replace").splitlines()]
        parsed = [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]
        return [line for line in parsed if line["event"] == name]

    def wait_for(self, name: str, within_s: float = 120.0) -> dict[str, Any]:
        """The first line with this event name."""

        def look() -> list[dict[str, Any]]:
            if self.process.poll() is not None and not self.events(name):
                raise AssertionError(f"{self.name} ended with {self.process.returncode}:\n{self.errors()}")
            return self.events(name)

        return until(f"{self.name} says {name}\n{self.errors()}", look, within_s)[0]

    def errors(self) -> str:
        """The last of what it wrote to stderr."""
        return self._err.read_text(errors="replace")[-3000:]

    def stop(self, number: int = signal.SIGTERM, within_s: float = 60.0) -> int:
        """Signal the process and wait for its end; its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(within_s)


@dataclass
class RayCluster:
    """Running nodes and what a fleet needs to join them."""

    address: str
    folder: Path
    environment: dict[str, str]
    nodes: dict[str, LoggedProcess] = field(default_factory=dict)
    fleets: list[LoggedProcess] = field(default_factory=list)

    @property
    def data_dir(self) -> Path:
        return Path(self.environment["EFFILLM_DATA_DIR"])

    def start_node(self, name: str, devices: Sequence[str]) -> LoggedProcess:
        """A further node with these declared devices (`CLASS:COUNT`); call `wait_for("node.ready")` on it."""
        place = ["--head", "--port", self.address.rpartition(":")[2]] if not self.nodes else ["--address", self.address]
        offers = [part for device in devices for part in ("--declare", device)] or ["--no-devices"]
        arguments = [*place, *offers, "--name", name, "--temp-dir", str(self.folder / name)]
        self.nodes[name] = LoggedProcess(name, "effillm_worker.node", arguments, self.environment, self.folder)
        return self.nodes[name]

    def start_fleet(self, name: str = "fleet") -> LoggedProcess:
        """A fleet process on this cluster."""
        self.fleets.append(LoggedProcess(name, "effillm_worker.fleet", [], self.environment, self.folder))
        return self.fleets[-1]

    def processes(self) -> list[psutil.Process]:
        """Whatever still runs for this cluster: its folder is in the arguments or environment of all its processes."""
        mark = str(self.folder)
        found = []
        for process in psutil.process_iter():
            try:
                ours = any(mark in part for part in process.cmdline()) or process.environ().get("EFFILLM_TEST") == mark
                if ours and process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def actor_log(self) -> str:
        """What all actors wrote, for messages of failing tests."""
        return "\n".join(
            path.read_text(errors="replace") for path in sorted(self.folder.glob("*/session_2*/logs/worker-*.err"))
        )


@contextmanager
def ray_cluster(
    nodes: Mapping[str, Sequence[str]], database_url: str, settings: Mapping[str, str] | None = None
) -> Iterator[RayCluster]:
    """Nodes by name, the first is the head; ends with every process of the cluster gone."""
    # A short path: Ray's sockets lie below it.
    folder = Path(tempfile.mkdtemp(prefix="ef-", dir="/tmp"))
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "EFFILLM_"))},
        "EFFILLM_DATABASE_URL": database_url,
        "EFFILLM_DATA_DIR": str(folder / "data"),
        "EFFILLM_LOCK_DIR": str(folder / "locks"),
        "EFFILLM_TEST": str(folder),
        **(settings or {}),
    }
    address = f"127.0.0.1:{free_port()}"
    environment["EFFILLM_RAY_ADDRESS"] = address
    cluster = RayCluster(address, folder, environment)
    try:
        for name, devices in nodes.items():
            node = cluster.start_node(name, devices)
            if len(cluster.nodes) == 1:
                node.wait_for("node.ready")
        for node in cluster.nodes.values():
            node.wait_for("node.ready")
        yield cluster
    finally:
        for fleet in cluster.fleets:
            fleet.stop()
        # The head last: the others leave in order while it is there.
        for node in reversed(list(cluster.nodes.values())):
            node.process.terminate()
        for node in cluster.nodes.values():
            node.stop()
        leftover = cluster.processes()
        _, alive = psutil.wait_procs(leftover, timeout=10)
        for process in alive:
            process.kill()
        shutil.rmtree(folder, ignore_errors=True)
        if alive:
            raise AssertionError(f"processes outlived their cluster: {alive}")
