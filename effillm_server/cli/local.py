"""EffiLLM on one box: embedded Postgres, local Ray node, fleet and API as children of this process."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx

from effillm_server.cli.claim import Claim
from effillm_server.cli.client import Client
from effillm_server.cli.postgres import EmbeddedPostgres
from effillm_server.cli.processes import Service, Services
from effillm_server.cli.render import say, step
from effillm_server.credentials import admin_key, is_loopback, is_required, without_admin
from effillm_server.errors import BadInput, Unavailable
from effillm_server.ports import free_port
from effillm_server.settings import Settings

POLL_S = 0.1
NODE_WITHIN_S = 120.0
API_WITHIN_S = 60.0
DEVICE_WITHIN_S = 60.0
RAY_ANSWERS_WITHIN_S = 5.0
# What is pending from before keeps a device from being seen free; a drained one stays aside on purpose.
IN_SERVICE = ("free", "leased", "draining")
# Ray puts sockets of up to 63 characters below its folder, and a socket's path may have 107.
LONGEST_RAY_DIR = 44
# Listening everywhere is no address to speak to.
WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104


@dataclass(frozen=True)
class Plan:
    """What to start: the settings in force, where logs go, and what the node is to offer."""

    settings: Settings
    logs: Path
    declared: tuple[str, ...] = ()
    with_cpu: bool = False

    @property
    def url(self) -> str:
        """Where the API answers as seen from this box."""
        host = WILDCARDS.get(self.settings.host, self.settings.host)
        return f"http://{f'[{host}]' if ':' in host else host}:{self.settings.port}"

    def client(self) -> Client:
        """A client of this box's own API, an admin there."""
        return Client(self.url, (admin_key(self.settings) or "") if is_required(self.settings) else "")


class Box:
    """Everything that runs here; `check` keeps it running. All methods belong to the main thread."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.is_stopping = False
        self.services = Services(say)
        self._postgres: EmbeddedPostgres | None = None
        self._offered: set[str] = set()
        # A token of another cluster would be taken for ours.
        foreign = ("RAY_ADDRESS", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH") if plan.settings.ray_address is None else ()
        self._environment = {name: value for name, value in os.environ.items() if name not in foreign} | {
            "EFFILLM_DATA_DIR": str(plan.settings.data_dir.absolute()),
            "EFFILLM_HOST": plan.settings.host,
            "EFFILLM_PORT": str(plan.settings.port),
            "EFFILLM_REQUIRE_KEYS": str(plan.settings.require_keys).lower(),
            "PYTHONUNBUFFERED": "1",
        }

    def start(self) -> None:
        """Starts database, node, API and fleet, each as soon as what it needs answers. Raises EffillmError."""
        settings = self.plan.settings
        if settings.ray_address is not None:
            check_answers(settings.ray_address)
        if settings.database_url is None:
            self._postgres = EmbeddedPostgres(self.plan.settings.data_dir.absolute(), self._log("database"))
            with step("starting the embedded Postgres", "the embedded Postgres is up"):
                self.services.start(self._postgres.prepare())
                self._postgres.wait_until_ready(self.check)
        url = settings.database_url or (self._postgres.url if self._postgres is not None else "")
        self._environment["EFFILLM_DATABASE_URL"] = url
        # Ray takes longest to start and needs the database only once there is a fleet.
        node_is_up = self._start_node() if settings.ray_address is None else None
        with step("migrating the database", "the database has this version's schema"):
            migrated(url)
        self._start_python("api", "effillm_server.api")
        if node_is_up is not None:
            with step("starting a local Ray node", "the Ray node is up"):
                self._must("node", node_is_up, NODE_WITHIN_S)
        with step("starting fleet and API", "fleet and API are up"):
            self._start_python("fleet", "effillm_worker.fleet")
            self._must("api", self._api_is_ready, API_WITHIN_S)

    def check(self) -> None:
        """Restarts what has died. Raises Unavailable when that is hopeless."""
        self.services.check()

    def stop(self) -> None:
        """Ends everything; safe to call at any point of `start`."""
        self.is_stopping = True
        self.services.stop()
        if self._postgres is not None:
            self._postgres.remove_socket_directory()

    def wait_for_devices(self, client: Client) -> list[dict[str, Any]]:
        """The devices once all that this box offers are in service, or as they are when that took too long."""
        found: list[dict[str, Any]] = []

        def all_are_in_service() -> bool:
            with contextlib.suppress(Unavailable):
                found[:] = client.pages("/v1/devices")
            in_service = {device["id"] for device in found if device["state"] in IN_SERVICE}
            return bool(in_service) and in_service >= self._offered

        with step("waiting for devices", "devices have been looked for"), contextlib.suppress(TimeoutError):
            self._until(all_are_in_service, DEVICE_WITHIN_S)
        return found

    def _start_node(self) -> Callable[[], bool]:
        """Starts the Ray node; returns what tells whether it is up."""
        data_dir = self.plan.settings.data_dir.absolute()
        port, ray_dir, log = free_port("127.0.0.1"), ray_directory(data_dir), self._log("node")
        # We hold the data directory, so nobody uses it; sessions of earlier starts would pile up.
        shutil.rmtree(ray_dir, ignore_errors=True)
        begin = log.stat().st_size if log.exists() else 0
        arguments = ["--head", f"--port={port}", f"--temp-dir={ray_dir}"]
        arguments += [f"--declare={claim}" for claim in self.plan.declared] + ["--cpu"] * self.plan.with_cpu
        self._start_python("node", "effillm_worker.node", *arguments)
        # For the fleet: Ray reads its own variables while it is imported.
        self._environment |= {
            "EFFILLM_RAY_ADDRESS": f"127.0.0.1:{port}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(data_dir / "ray-token"),
        }

        def is_up() -> bool:
            offered = announced(log, begin)
            self._offered = offered or set()
            return offered is not None

        return is_up

    def _start_python(self, name: str, module: str, *arguments: str) -> None:
        command = (sys.executable, "-m", module, *arguments)
        # Keys open the API and nothing else, so nothing else has them.
        hidden = () if name == "api" else ("EFFILLM_ADMIN_KEY", "EFFILLM_API_KEY")
        environment = {name: value for name, value in self._environment.items() if name not in hidden}
        self.services.start(Service(name, command, environment, self._log(name)))

    def _api_is_ready(self) -> bool:
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"{self.plan.url}/readyz", timeout=5, trust_env=False).is_success
        return False

    def _until(self, condition: Callable[[], bool], within_s: float) -> None:
        """Returns when the condition holds. Raises TimeoutError, and Unavailable when a child cannot run."""
        deadline = time.monotonic() + within_s
        while not condition():
            self.check()
            if time.monotonic() > deadline:
                raise TimeoutError
            time.sleep(POLL_S)

    def _must(self, name: str, condition: Callable[[], bool], within_s: float) -> None:
        try:
            self._until(condition, within_s)
        except TimeoutError:
            raise Unavailable(
                f"the {name} did not become ready within {within_s:g} s; log: {self._log(name)}"
            ) from None

    def _log(self, name: str) -> Path:
        return self.plan.logs / f"{name}.log"


@contextmanager
def claimed(plan: Plan) -> Iterator[Box]:
    """A box ready to be started, its data directory held and its port free. Raises EffillmError."""
    claim = Claim(plan.settings.data_dir)
    try:
        plan = replace(plan, settings=checked(plan.settings))
        plan.logs.mkdir(parents=True, exist_ok=True)
        claim.publish({"url": plan.url})
        yield Box(plan)
    finally:
        claim.release()


def migrated(url: str) -> None:
    """Brings the database to this version's schema. Raises EffillmError."""
    # Imported here: they cost more than everything else, and no other command needs them.
    from alembic.util import CommandError

    from effillm_server.ledger.engine import migrate

    try:
        migrate(url)
    except CommandError:
        raise Unavailable(
            "the database was migrated by a newer EffiLLM than this one: install that version, or use another database"
        ) from None


def checked(settings: Settings) -> Settings:
    """The settings with a port that is free. Raises BadInput when this box cannot be served with them."""
    if is_required(settings) and admin_key(settings) is None:
        raise BadInput(without_admin(settings), field="EFFILLM_ADMIN_KEY")
    if settings.ray_address and not settings.database_url and not is_loopback(settings.ray_address.rpartition(":")[0]):
        raise BadInput(
            f"EFFILLM_RAY_ADDRESS={settings.ray_address} is another box, which an embedded Postgres does not serve: "
            "set EFFILLM_DATABASE_URL too",
            field="EFFILLM_DATABASE_URL",
        )
    if settings.port == 0:
        return settings.model_copy(update={"port": free_port(settings.host)})
    if (failure := bind(settings.host, settings.port)) is not None:
        taken = "is taken" if failure.errno == errno.EADDRINUSE else f"cannot be used ({failure.strerror})"
        raise BadInput(
            f"port {settings.port} on {settings.host} {taken}: end what listens there, or name another with --port "
            "(0 for any free one)",
            field="EFFILLM_PORT",
        )
    return settings


def bind(host: str, port: int) -> OSError | None:
    """What stands against listening there; None when nothing does."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server will
        try:
            probe.bind((host, port))
        except OSError as error:
            return error
    return None


def check_answers(ray_address: str) -> None:
    """Raises Unavailable when nothing listens at the Ray head's address, BadInput when it is none."""
    host, _, port = ray_address.rpartition(":")
    if not host or not port.isdigit():
        raise BadInput(f"EFFILLM_RAY_ADDRESS={ray_address} is not HOST:PORT", field="EFFILLM_RAY_ADDRESS")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=RAY_ANSWERS_WITHIN_S).close()
    except OSError as error:
        raise Unavailable(
            f"no Ray head answers at {ray_address} ({error.strerror or error}): start it with `effillm node --head`, or unset "
            "EFFILLM_RAY_ADDRESS for a local one"
        ) from None


def announced(log: Path, begin: int) -> set[str] | None:
    """The devices that the node has said it offers, since `begin`, once its cluster counts it among the living."""
    if not log.exists():
        return None
    with log.open("rb") as file:
        file.seek(begin if log.stat().st_size >= begin else 0)
        for line in file:
            if b'"node.ready"' in line and line.endswith(b"\n"):
                return set(json.loads(line)["devices"])
    return None


def ray_directory(data_dir: Path) -> Path:
    """Where Ray keeps sockets and logs: below the data directory, or in a short place named after it."""
    inside = data_dir / "ray"
    if len(str(inside)) <= LONGEST_RAY_DIR:
        return inside
    name = hashlib.sha256(str(data_dir).encode()).hexdigest()[:12]
    return Path(tempfile.gettempdir()) / f"effillm-ray-{name}"
