"""A Ray node in the foreground that offers this box's devices: `python -m effillm_worker.node --head | --address HOST:PORT`."""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter

from effillm_server.catalog import load
from effillm_server.contract.fingerprint import DeviceDeclaration
from effillm_server.errors import BadInput, EffillmError, Unavailable
from effillm_server.ports import free_port
from effillm_server.settings import Settings
from effillm_worker import fingerprint, head
from effillm_worker.fleet.offers import CLASS_PREFIX
from effillm_worker.ledger_check import check_ledger
from effillm_worker.log import event, write

DECLARATIONS_FILE = "EFFILLM_NODE_DECLARATIONS"
DECLARATIONS: TypeAdapter[tuple[DeviceDeclaration, ...]] = TypeAdapter(tuple[DeviceDeclaration, ...])
HARDWARE_LABEL = "effillm.io/hardware"
DEFAULT_PORT = 6379
# Ray's smallest store: our actors send a few hundred bytes a call.
OBJECT_STORE_BYTES = 80_000_000
RETRY_S = 2.0
STOP_WITHIN_S = 20.0
ANNOUNCE_ENDS_WITHIN_S = 5.0
PR_SET_PDEATHSIG = 1
# Ray puts sockets of up to 63 characters below its folder, and a socket's path may have 107.
LONGEST_TEMP_DIR = 44


@dataclass(frozen=True)
class Plan:
    """A Ray node to run: where it belongs, what it offers."""

    name: str
    address: str | None
    port: int
    devices: tuple[DeviceDeclaration, ...]
    temp_dir: Path
    environment: dict[str, str]
    has_monitor: bool = True

    @property
    def head_address(self) -> str:
        return self.address or f"127.0.0.1:{self.port}"

    @property
    def ready_file(self) -> Path:
        """There while the head counts this node among the living: what a container's health check looks at."""
        return self.temp_dir / "ready"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the node until it is told to stop. Exit code 2: it cannot be started like this; 1: something did not answer."""
    try:
        settings = Settings.from_environment()
        plan = _plan(_parser().parse_args(arguments), settings)
        os.environ.update(plan.environment)
        if plan.devices:
            check_ledger(settings.database_url or "")
        return Node(plan).run()
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except EffillmError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


class Node:
    """`ray start --block` as a child process, started again whenever the head is back."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._stopping = threading.Event()
        self._ray: subprocess.Popen[bytes] | None = None

    def run(self) -> int:
        """The exit code: 0 when told to stop, Ray's own when a head ended by itself."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._stop())
        if self._plan.address is None:
            # A head that was here before leaves this note, and Ray refuses the port while any process of that cluster lives.
            # We have seen that nobody listens on it.
            (self._plan.temp_dir / "ray_current_cluster").unlink(missing_ok=True)
            return self._start_and_wait()
        check_head(self._plan.address)
        while not self._stopping.is_set():
            code = self._start_and_wait()
            if not self._stopping.is_set():
                event("node.left", node=self._plan.name, head=self._plan.address, exit_code=code)
                self._wait_for_head(self._plan.address)
        return 0

    def _start_and_wait(self) -> int:
        start = secrets.token_hex(8)
        self._ray = subprocess.Popen(
            _command(self._plan, start),
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr,
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )
        announcing = threading.Thread(target=self._announce, args=(self._ray, start), daemon=True)
        announcing.start()
        code = self._ray.wait()
        announcing.join(ANNOUNCE_ENDS_WITHIN_S)
        self._plan.ready_file.unlink(missing_ok=True)
        return 0 if self._stopping.is_set() else code

    def _announce(self, ray: subprocess.Popen[bytes], start: str) -> None:
        """Say on stdout, in one line, that the head counts this node among the living: this start of it, not one before
        that the head still believes in."""
        while ray.poll() is None:
            try:
                joined = head.is_registered(self._plan.head_address, start)
            except Exception:  # noqa: BLE001 - Ray's client raises anything while the head is coming up
                joined = False
            if joined:
                devices = [device.id for device in self._plan.devices]
                self._plan.ready_file.parent.mkdir(parents=True, exist_ok=True)
                self._plan.ready_file.touch()
                fields = {"node": self._plan.name, "head": self._plan.head_address, "devices": devices}
                return write(sys.stdout, "node.ready", fields)
            self._stopping.wait(0.2)
        return None

    def _wait_for_head(self, address: str) -> None:
        """Returns when the head answers again. Raises BadInput when it came back with other versions or another token."""
        while not self._stopping.wait(RETRY_S):
            try:
                return check_head(address)
            except Unavailable as error:
                event("node.waiting", node=self._plan.name, head=address, why=str(error))
        return None

    def _stop(self) -> None:
        self._stopping.set()
        if self._ray is not None and self._ray.poll() is None:
            self._ray.terminate()
            killer = threading.Timer(STOP_WITHIN_S, os.killpg, (self._ray.pid, signal.SIGKILL))
            killer.daemon = True
            killer.start()


def check_head(address: str) -> None:
    """Raises Unavailable when no head answers there, BadInput when this box does not fit its cluster."""
    versions = head.head_versions(address)
    head.check_versions(versions, head.own_versions())
    head.check_token(address)


def own_declarations() -> tuple[DeviceDeclaration, ...]:
    """The devices of the node this process was started by. Raises BadInput outside of one."""
    path = os.environ.get(DECLARATIONS_FILE)
    if not path:
        raise BadInput(f"{DECLARATIONS_FILE} is not set: this Ray node was not started by `effillm node`")
    return DECLARATIONS.validate_json(Path(path).read_bytes())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="effillm node", description=__doc__)
    place = parser.add_mutually_exclusive_group(required=True)
    place.add_argument("--head", action="store_true", help="start a cluster")
    place.add_argument("--address", metavar="HOST:PORT", help="join the cluster whose head listens there")
    parser.add_argument("--port", type=int, help=f"port the head listens on (default {DEFAULT_PORT}; 0: a free one)")
    parser.add_argument(
        "--declare", action="append", default=[], metavar="CLASS:COUNT", help="claim devices, for test clusters"
    )
    parser.add_argument("--cpu", action="store_true", help="offer the processors although there is a GPU")
    parser.add_argument("--gpu", action="store_true", help="offer GPUs only, and refuse to start without one")
    parser.add_argument("--no-devices", action="store_true", help="offer nothing: a node for the fleet only")
    parser.add_argument(
        "--no-monitor",
        action="store_true",
        help="with --head: an autoscaler of its own runs beside it, as KubeRay's does",
    )
    parser.add_argument("--name", help="name of this node (default: the host name)")
    parser.add_argument("--token-file", type=Path, help="Ray's token (default: ray-token in the data directory)")
    parser.add_argument("--temp-dir", type=Path, help="where Ray keeps its sockets and logs; a short path")
    return parser


def _plan(options: argparse.Namespace, settings: Settings) -> Plan:
    if options.port is not None and options.address:
        raise BadInput("--port is the head's: it goes with --head, a joining node names the port in --address")
    if options.address and not re.fullmatch(r"\S+:\d{1,5}", options.address):
        raise BadInput(f"--address {options.address!r} is not HOST:PORT")
    name = options.name or re.sub(r"[^A-Za-z0-9.-]", "-", socket.gethostname())
    devices = _devices(options, name)
    if devices and not settings.database_url:
        raise BadInput(
            "EFFILLM_DATABASE_URL is not set: the workers of this node report to the lab's Postgres; an embedded one "
            "(`effillm up`) serves its own box only"
        )
    temp_dir = options.temp_dir or Path(tempfile.gettempdir()) / f"effillm-ray-{os.getuid()}"
    if len(str(temp_dir)) > LONGEST_TEMP_DIR:
        raise BadInput(
            f"--temp-dir {temp_dir} is too long for Ray's sockets: at most {LONGEST_TEMP_DIR} characters, found {len(str(temp_dir))}"
        )
    port = free_port() if options.port == 0 else options.port or DEFAULT_PORT
    if options.head and head.is_taken(port):
        raise BadInput(f"port {port} is taken on this box: name another with --port, or 0 for a free one")
    _writable(settings.data_dir, "EFFILLM_DATA_DIR")
    if devices:
        _writable(settings.lock_dir, "EFFILLM_LOCK_DIR")
    environment = _environment(settings, _token_file(options, settings), _declare(settings, name, devices))
    return Plan(name, options.address, port, devices, temp_dir, environment, not options.no_monitor)


def _devices(options: argparse.Namespace, name: str) -> tuple[DeviceDeclaration, ...]:
    if options.no_devices:
        return ()
    if not options.declare:
        found = fingerprint.detected(name, with_cpu=options.cpu)
        return _gpus_of(found) if options.gpu else found
    claims = [re.fullmatch(r"([a-z0-9][a-z0-9.-]{0,63})(?::([1-9]\d{0,2}))?", text) for text in options.declare]
    if None in claims:
        raise BadInput(f"--declare {options.declare[claims.index(None)]!r} is not CLASS:COUNT, such as t4:2")
    memory = {name: facts.memory_bytes for name, facts in load().hardware.items()}
    return fingerprint.declared(name, [(claim[1], int(claim[2] or 1)) for claim in claims if claim], memory)


def _gpus_of(devices: tuple[DeviceDeclaration, ...]) -> tuple[DeviceDeclaration, ...]:
    boards = tuple(device for device in devices if device.hardware_class != "cpu")
    if not boards:
        raise BadInput(
            "--gpu: no GPU is visible here; install the driver (`nvidia-smi` shows the boards) and, for containers, NVIDIA's "
            "container toolkit, or leave --gpu and the compose profile `gpu` off"
        )
    return boards


def _token_file(options: argparse.Namespace, settings: Settings) -> Path | None:
    """The file with Ray's token; None when the environment carries one. A head makes its own, a node must have been given it."""
    if options.token_file is None and (os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")):
        return None
    path = (options.token_file or head.token_file(settings.data_dir)).absolute()
    if options.head:
        return head.ensure_token(path)
    if not path.exists():
        raise BadInput(
            f"no token file at {path}: copy the one of the head (ray-token in its data directory) here, or name it with --token-file"
        )
    return path


def _writable(folder: Path, setting: str) -> None:
    """Raises BadInput when no file can be made in the folder: better said now than by every actor for itself."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise BadInput(
            f"{setting}={folder} cannot be written ({error.strerror}): make it belong to user {os.getuid()}, who runs this node, "
            "or name another folder",
            field=setting,
        ) from None


def _declare(settings: Settings, name: str, devices: tuple[DeviceDeclaration, ...]) -> Path:
    """Write down for the actors what this node offers."""
    folder = settings.data_dir.absolute() / "nodes"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_bytes(DECLARATIONS.dump_json(devices))
    return path


def _environment(settings: Settings, token: Path | None, declarations: Path) -> dict[str, str]:
    """What Ray and, through it, the actors of this node find in their environment."""
    environment = {
        DECLARATIONS_FILE: str(declarations),
        "EFFILLM_DATA_DIR": str(settings.data_dir.absolute()),
        # The memory monitor kills an actor for the memory of its child; the child has a limit of its own.
        "RAY_memory_monitor_refresh_ms": "0",
        # The actor gives its child the device by uuid; Ray's index may be another one.
        "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1",
        # Draining waits for work Ray knows of; it knows of none of ours, and with its head gone it waits in vain.
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        # Its agents would poll beside the measurements.
        "RAY_enable_metrics_collection": "0",
        # What is left of the dashboard would serve its own metrics to everybody. No port has this number, and Ray goes on without.
        "DASHBOARD_METRIC_PORT": "65536",
    }
    head.use_token(environment, token)
    return environment


def _command(plan: Plan, start: str) -> list[str]:
    place = ["--head", f"--port={plan.port}"] if plan.address is None else [f"--address={plan.address}"]
    if plan.address is None:
        place += ["--include-dashboard=false", f"--ray-client-server-port={free_port()}"]
        place += [] if plan.has_monitor else ["--no-monitor"]
    classes = sorted({device.hardware_class for device in plan.devices})
    labels = {head.NODE_LABEL: plan.name, head.START_LABEL: start, HARDWARE_LABEL: "_".join(classes)[:63] or "none"}
    return [
        sys.executable, "-m", "ray.scripts.scripts", "start", *place, "--block", "--disable-usage-stats", "--log-color=false",
        # Nothing but our actors runs here, and they ask for no CPU of Ray's.
        "--num-cpus=0", f"--num-gpus={sum(device.hardware_class != 'cpu' for device in plan.devices)}",
        f"--resources={json.dumps(_resources(plan.devices))}",
        f"--labels={','.join(f'{key}={value}' for key, value in labels.items())}",
        f"--object-store-memory={OBJECT_STORE_BYTES}", f"--temp-dir={plan.temp_dir}", "--include-log-monitor=false",
    ]  # fmt: skip


def _resources(devices: tuple[DeviceDeclaration, ...]) -> dict[str, int]:
    counts = Counter(f"{CLASS_PREFIX}{device.hardware_class}" for device in devices)
    return {**{device.resource: 1 for device in devices}, **counts}


def _die_with_parent() -> None:
    # The signal follows the thread that forks: `run` starts Ray from the main one.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
