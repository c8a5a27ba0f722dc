"""A whole lab on one machine, kept running as an operator would: Postgres, API, two fleets and a Ray cluster of four nodes.

Whatever dies is started again after a moment, unless the campaign holds it down. Every process has a way to the database
of its own, through the proxy. One node lies behind a cable of its own where the machine allows network namespaces.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from effillm_server.cli.processes import TETHER
from effillm_server.ports import free_port
from tests.support.faults import tree, witness
from tests.support.faults.database import Database
from tests.support.faults.network import Cable, is_possible
from tests.support.faults.proxy import Proxy

RESTART_AFTER_S = 0.3
# What a campaign writes, its write-ahead log, and a reserve; small enough to be filled in a moment.
DATABASE_DISK = "1200m"


@dataclass(frozen=True)
class Plan:
    """Nodes by name with the devices they declare; the first is the head, which offers this box's processors."""

    nodes: Mapping[str, Sequence[str]]
    fleets: int = 2
    ttl_s: float = 5.0
    seed: int = 0
    behind_cable: str | None = None


@dataclass
class Kept:
    """A process that is started again when it dies. `held_until`: not before this moment."""

    name: str
    command: Sequence[str]
    environment: dict[str, str]
    log: Path
    process: subprocess.Popen[bytes] | None = None
    held_until: float = 0.0
    starts: int = 0
    begins_at: int = 0

    def start(self) -> None:
        """Its log goes on in the same file; `said` tells only what this life wrote."""
        tether = (sys.executable, "-I", "-S", str(TETHER), str(os.getpid()), str(int(signal.SIGKILL)), "-")
        self.begins_at = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                (*tether, *self.command), env=self.environment, stdin=subprocess.DEVNULL, stdout=log,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        self.starts += 1

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def kill(self) -> None:
        """SIGKILL; harmless between two of its lives."""
        assert self.process is not None
        self.process.kill()

    def said(self, *events: str) -> list[dict[str, Any]]:
        """The structured lines of its present life with one of these event names."""
        if not self.log.exists():
            return []
        with self.log.open("rb") as log:
            log.seek(self.begins_at)
            lines = log.read().decode(errors="replace").splitlines()
        found = []
        for line in lines:
            if line.startswith("{") and any(f'"event": "{name}"' in line for name in events):
                with contextlib.suppress(ValueError):
                    found.append(json.loads(line))
        return found


@dataclass
class Lab:
    """Everything that runs, and what is still to be done to it at a later moment. Belongs to the main thread."""

    folder: Path
    plan: Plan
    database: Database
    proxy: Proxy
    api_port: int
    kept: dict[str, Kept] = field(default_factory=dict)
    cable: Cable | None = None
    small_disks: list[Path] = field(default_factory=list)
    database_disk: Path | None = None
    _later: list[tuple[float, Callable[[], object]]] = field(default_factory=list)

    @property
    def nodes(self) -> list[str]:
        """The nodes with declared devices."""
        return list(self.plan.nodes)[1:]

    @property
    def head(self) -> str:
        return next(iter(self.plan.nodes))

    @property
    def fleets(self) -> list[str]:
        return [f"fleet-{number}" for number in range(self.plan.fleets)]

    @property
    def lock_dir(self) -> Path:
        return self.folder / "locks"

    @property
    def witness_dir(self) -> Path:
        return self.folder / "witness"

    @property
    def api(self) -> str:
        return f"http://127.0.0.1:{self.api_port}"

    def device_ids(self, node: str | None = None) -> list[str]:
        """Declared devices, as the nodes name them."""
        return [
            f"{hardware}-{name}-{number}"
            for name in (self.nodes if node is None else [node])
            for hardware, _, count in (offer.partition(":") for offer in self.plan.nodes[name])
            for number in range(int(count))
        ]

    def tend(self) -> None:
        """Do what has become due, start again what has died."""
        now = time.monotonic()
        due = [action for at, action in self._later if at <= now]
        self._later = [(at, action) for at, action in self._later if at > now]
        for action in due:
            action()
        for one in self.kept.values():
            if one.process is None or one.is_running:
                continue
            if one.held_until == 0.0:
                one.held_until = now + RESTART_AFTER_S
            elif one.held_until <= now:
                one.start()
                one.held_until = 0.0

    def later(self, seconds: float, action: Callable[[], object]) -> None:
        """Do it when `tend` is called after this time."""
        self._later.append((time.monotonic() + seconds, action))

    def hold(self, name: str, seconds: float) -> None:
        """Once it is dead it stays so for this long."""
        self.kept[name].held_until = time.monotonic() + seconds

    def wait(self, what: str, look: Callable[[], Any], within_s: float) -> Any:
        """The first true value of `look`, the lab tended meanwhile."""
        until = time.monotonic() + within_s
        while True:
            self.tend()
            if found := look():
                return found
            if time.monotonic() > until:
                raise AssertionError(f"not within {within_s:g} s: {what}")
            time.sleep(0.1)

    def active_fleet(self) -> str | None:
        """The fleet whose last word on the matter was that it leads."""
        for name in self.fleets:
            words = self.kept[name].said("fleet.active", "fleet.standby")
            if self.kept[name].is_running and words and words[-1]["event"] == "fleet.active":
                return name
        return None

    def log_tail(self, name: str, characters: int = 1500) -> str:
        return self.kept[name].log.read_text(errors="replace")[-characters:]


@contextmanager
def lab(plan: Plan, keep_logs: Path | None = None) -> Iterator[Lab]:
    """A lab that is ready to measure; ends with everything gone. `keep_logs`: where to copy the processes' logs to."""
    # A short path: Ray's sockets lie below it.
    folder = Path(tempfile.mkdtemp(prefix="ef-", dir="/tmp"))
    folder.chmod(0o755)
    database_disk = folder / "db"
    database_disk.mkdir()
    has_disk = _mount(database_disk, DATABASE_DISK)
    database = Database(database_disk)
    cable = Cable() if plan.behind_cable and is_possible() else None
    # A node behind a cable reaches the proxy by the box's end of it.
    proxy = Proxy(database.socket, plan.seed, "127.0.0.1" if cable is None else "0.0.0.0")
    built = Lab(
        folder, plan, database, proxy, free_port(), cable=cable, database_disk=database_disk if has_disk else None
    )
    try:
        _start(built)
        yield built
    finally:
        _end(built, keep_logs)


def _start(lab: Lab) -> None:
    head_port = free_port()
    models(lab.folder / "models")
    interpreter = witness.interpreter(lab.folder / "witnessed", lab.witness_dir)
    common = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "EFFILLM_"))},
        "EFFILLM_LOCK_DIR": str(lab.lock_dir), "EFFILLM_LEASE_TTL_S": str(lab.plan.ttl_s), "EFFILLM_TEST": str(lab.folder),
        "EFFILLM_MODEL_ROOT": str(lab.folder / "models"), "EFFILLM_RUNTIMES": json.dumps({"witnessed": str(interpreter)}),
        "EFFILLM_RAY_ADDRESS": f"127.0.0.1:{head_port}", "EFFILLM_DATA_DIR": str(lab.folder / "data" / lab.head),
        "EFFILLM_PORT": str(lab.api_port), "HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9",
    }  # fmt: skip
    for name, offers in lab.plan.nodes.items():
        _add_node(lab, name, offers, head_port, common)
    _add(lab, "api", ["-m", "effillm_server.api"], common)
    lab.kept[lab.head].start()
    lab.kept["api"].start()
    lab.wait("the head is ready", lambda: lab.kept[lab.head].said("node.ready"), 120)
    for name in lab.nodes:
        lab.kept[name].start()
    for name in lab.fleets:
        _add(lab, name, ["-m", "effillm_worker.fleet"], common)
        lab.kept[name].start()
    lab.wait("all nodes are ready", lambda: all(lab.kept[name].said("node.ready") for name in lab.nodes), 120)
    lab.wait("a fleet leads", lab.active_fleet, 120)


def _add(lab: Lab, name: str, arguments: Sequence[str], environment: dict[str, str], host: str = "127.0.0.1") -> None:
    link = lab.proxy.add(name)
    url = f"postgresql://effillm@{host}:{link.port}/postgres?sslmode=disable&gssencmode=disable"
    environment = environment | {"EFFILLM_DATABASE_URL": url}
    lab.kept[name] = Kept(name, [sys.executable, *arguments], environment, lab.folder / f"{name}.log")


def _add_node(lab: Lab, name: str, offers: Sequence[str], port: int, environment: dict[str, str]) -> None:
    data = lab.folder / "data" / name
    spool = data / "spool"
    spool.mkdir(parents=True)
    if name != lab.head and _mount(spool, "2m"):
        lab.small_disks.append(spool)
    is_cabled = lab.cable is not None and name == lab.plan.behind_cable
    here = lab.cable.here if lab.cable is not None and is_cabled else "127.0.0.1"
    place = ["--head", "--port", str(port), "--cpu"] if name == lab.head else ["--address", f"{here}:{port}"]
    devices = [part for offer in offers for part in ("--declare", offer)]
    arguments = [
        "-m", "effillm_worker.node", *place, *devices, "--name", name, "--temp-dir", str(lab.folder / name),
        "--token-file", str(lab.folder / "data" / lab.head / "ray-token"),
    ]  # fmt: skip
    _add(lab, name, arguments, environment | {"EFFILLM_DATA_DIR": str(data)}, here)
    if lab.cable is not None and is_cabled:
        kept = lab.kept[name]
        kept.command = [*lab.cable.command(), *kept.command]


def _mount(folder: Path, size: str) -> bool:
    """Whether the folder is a disk of its own of this size now, in memory."""
    if os.geteuid() != 0:
        return False
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


def models(root: Path) -> None:
    """Folders for the names of simulated models that the campaign uses, and a tiny real one."""
    config = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 128,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 256,
        "max_position_embeddings": 2048, "torch_dtype": "float32", "tie_word_embeddings": False,
    }  # fmt: skip
    for name in ("tiny/llama", *MODELS):
        (root / name).mkdir(parents=True)
        (root / name / "config.json").write_text(json.dumps(config))


MODELS = tuple(
    f"simulated/{name}"
    for name in (
        "100", "200", "slow-0.02", "slow-0.05", "slow-0.2", "slow-load-1", "oom-above-300", "host-oom-above-300", "unsupported",
        "fail", "crash", "exit", "hang", "stall", "ignore-term", "orphan", "flood", "kills-its-node",
    )
)  # fmt: skip


def _end(lab: Lab, keep_logs: Path | None) -> None:
    """The nodes leave in order while their head is there; then whatever is left is ended, and that is a failure."""
    for name in lab.plan.nodes:
        one = lab.kept.get(name)
        for process in tree.below(one.pid) if one is not None and one.is_running else []:
            process.send(signal.SIGCONT)
    for group in (("api", *lab.fleets), lab.nodes, (lab.head,)):
        _stop([lab.kept[name] for name in group if name in lab.kept and lab.kept[name].process is not None])
    lab.proxy.close()
    lab.database.close()
    left = _left(lab.folder)
    if keep_logs is not None:
        _copy_logs(lab, keep_logs)
    if lab.cable is not None:
        lab.cable.remove()
    for disk in (*lab.small_disks, *([lab.database_disk] if lab.database_disk is not None else [])):
        subprocess.run(["umount", "-l", str(disk)], check=False, capture_output=True)
    shutil.rmtree(lab.folder, ignore_errors=True)
    if left:
        raise AssertionError(f"processes outlived their lab: {left}")


def _stop(processes: Sequence[Kept]) -> None:
    """Ask them all to end, then insist."""
    for one in processes:
        if one.is_running:
            os.kill(one.pid, signal.SIGTERM)
    until = time.monotonic() + 40
    for one in processes:
        assert one.process is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            one.process.wait(max(0.1, until - time.monotonic()))
        if one.is_running:
            tree.kill_at_once(tree.below(one.pid))
        one.process.wait(10)


def _left(folder: Path) -> list[str]:
    """Processes that still run some seconds after everything was told to end; they are ended here."""
    until = time.monotonic() + 10
    while (left := tree.marked(folder)) and time.monotonic() < until:
        time.sleep(0.2)
    for line in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(line.split()[0]), signal.SIGKILL)
    return left


def _copy_logs(lab: Lab, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    found = [*lab.folder.glob("*.log"), *lab.folder.glob("witness/*.jsonl"), *lab.folder.glob("db/*.log")]
    for path in found:
        shutil.copy(path, target / path.name)
    for path in lab.folder.glob("*/session_*/logs/worker-*.err"):
        if path.stat().st_size:
            shutil.copy(path, target / f"actor-{path.parts[-4]}-{path.name}")
