"""The compose file brought up for real under a project name of its own, and gone with its volumes afterwards."""

from __future__ import annotations

import json
import os
import secrets
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from effillm_server.ports import free_port

ROOT = Path(__file__).parents[2]
# What the commands of the page for one box read: the compose file, and what the images are built from.
READ = ("docker-compose.yml", ".env.example", ".dockerignore", "Dockerfile.api", "Dockerfile.worker", "examples")
LONG_RUNNING = ("postgres", "api", "fleet", "worker")
SECRETS = {
    "the admin key": ("api", "/run/effillm/admin/key"),
    "the database's password": ("postgres", "/run/effillm/database/password"),
    "Ray's token": ("fleet", "/run/effillm/ray/token"),
}
UP_WITHIN_S = 300.0


@dataclass
class Box:
    """A running project in a folder of its own. Commands are those of the documentation, with the project's name."""

    project: str
    port: int
    environment: dict[str, str]
    folder: Path
    # Asking a container takes a second of processor time, beside a measurement.
    _key: str | None = None

    @property
    def command(self) -> list[str]:
        return [*shlex.split(os.environ.get("COMPOSE", "docker compose")), "-p", self.project]

    @property
    def is_old(self) -> bool:
        """Whether compose is 1.29, which does not build with the engine's own network."""
        done = subprocess.run([*self.command[:-2], "version", "--short"], capture_output=True, check=True, timeout=60)
        return text(done.stdout).startswith("1.")

    def script(self, commands: str, within_s: float = 900) -> str:
        """What commands of the documentation write to stdout, run by a shell in the box's folder."""
        lines = commands.replace("docker compose ", f"{shlex.join(self.command)} ")
        done = subprocess.run(
            ["bash", "-e", "-o", "pipefail", "-c", lines],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=within_s,
        )
        if done.returncode != 0:
            raise AssertionError(f"{lines}: {done.returncode}\n{text(done.stdout)}\n{text(done.stderr)}")
        return text(done.stdout)

    def compose(self, *arguments: str, check: bool = True, within_s: float = 300) -> str:
        """What the command wrote to stdout; its whole output in the error when it fails."""
        command = [*self.command, *arguments]
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=within_s,
        )
        if check and done.returncode != 0:
            raise AssertionError(f"{shlex.join(command)}: {done.returncode}\n{text(done.stdout)}\n{text(done.stderr)}")
        return text(done.stdout) if check else text(done.stdout + done.stderr)

    def up(self) -> None:
        """Everything started; returns when the API serves and the worker's device is free."""
        self.compose("up", "-d")
        self.wait_free()

    def wait_free(self) -> None:
        """Returns when the API serves and the worker's device is free."""
        until = time.monotonic() + UP_WITHIN_S
        while True:
            with suppress(httpx.HTTPError, KeyError):
                devices = self.get("/v1/devices")["items"]
                if any(device["state"] == "free" for device in devices):
                    return
            if time.monotonic() > until:
                raise AssertionError(
                    f"not up within {UP_WITHIN_S:g} s:\n{self.compose('ps', check=False)}\n{self.logs()[-9000:]}"
                )
            time.sleep(1)

    def secret(self, what: str) -> str:
        service, path = SECRETS[what]
        return self.compose("exec", "-T", service, "cat", path).strip()

    def secrets(self) -> dict[str, str]:
        """Everything that nobody may see, by what it is."""
        found = {what: self.secret(what) for what in SECRETS}
        for service in ("api", "fleet", "worker"):
            url = self.compose("exec", "-T", service, "cat", f"/run/effillm/{service}/database-url").strip()
            found[f"the login of {service}"] = url.partition("://")[2].partition("@")[0].rpartition(":")[2]
        return found

    def container(self, service: str) -> str:
        """Id of the service's container."""
        return self.compose("ps", "-q", service).strip()

    def inspect(self, service: str) -> dict[str, Any]:
        done = docker("inspect", self.container(service))
        found: dict[str, Any] = json.loads(done)[0]
        return found

    def logs(self) -> str:
        return self.compose("logs", "--no-color", check=False)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        """The answer to the admin. A box that lost its volumes has made another key."""
        for attempt in (1, 2):
            if self._key is None:
                self._key = self.environment.get("EFFILLM_ADMIN_KEY") or self.secret("the admin key")
            headers = {"Authorization": f"Bearer {self._key}", **options.get("headers", {})}
            answer = httpx.request(
                method, self.url + path, **(options | {"headers": headers, "timeout": 30, "trust_env": False})
            )
            if answer.status_code != 401 or attempt == 2:
                break
            self._key = None
        return answer

    def get(self, path: str) -> Any:
        return self.request("GET", path).raise_for_status().json()


@contextmanager
def box(folder: Path, **environment: str) -> Iterator[Box]:
    """A project that is down, without containers, volumes and networks, at the end."""
    port = free_port()
    lay_out(folder)
    made = Box(
        f"effillm-{secrets.token_hex(4)}", port, {**os.environ, "PUBLISH": f"127.0.0.1:{port}", **environment}, folder
    )
    try:
        yield made
    finally:
        made.compose("--profile", "gpu", "down", "-v", "--remove-orphans", check=False)
        left = [kind for kind in ("volume", "network") if docker(kind, "ls", "-q", "--filter", f"name={made.project}_")]
        assert left == [], f"{left} outlived the project {made.project}"


def lay_out(folder: Path) -> None:
    """Copy what the commands read: a folder as a user has it, and no `.env` of whoever runs the tests."""
    # The tool's container reads it as another user.
    folder.chmod(0o755)
    let_in = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for name in (*READ, *let_in):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, target)


def docker(*arguments: str) -> str:
    done = subprocess.run(["docker", *arguments], capture_output=True, check=True, timeout=120)
    return text(done.stdout)


def text(output: bytes) -> str:
    return output.decode(errors="replace")
