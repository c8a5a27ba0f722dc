"""The compose file on a real engine: `make test-compose`. Real measurements, real kills, real backup; about a quarter of an hour."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.compose_box import LONG_RUNNING, SECRETS, Box, box, docker

pytestmark = [pytest.mark.compose, pytest.mark.timeout(3600)]

OPERATIONS = (Path(__file__).parents[2] / "docs/operations.md").read_text()
# Twelve cells, as examples/quickstart.yaml has, of its smaller model and with fewer tokens.
SWEEP = """
name: compose
models: [{id: EleutherAI/pythia-70m, weights: synthetic}]
hardware: [cpu]
quantization: [fp32, int8, int4]
batch_size: [1, 2]
sequence_length: [8, 16]
generate_tokens: 4
measurement: {warmup: 3, iterations: 5}
"""
ROWS = 12


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    with box(tmp_path_factory.mktemp("box"), EFFILLM_LEASE_TTL_S="15") as made:
        made.up()
        yield made


def test_a_box_comes_up_with_a_key_of_its_own_and_says_nothing_secret(here: Box) -> None:
    said, seen = here.logs(), "".join(docker("inspect", here.container(name)) for name in LONG_RUNNING)
    for what in SECRETS:
        secret = here.secret(what)
        assert len(secret) >= 40
        assert secret not in said + seen, f"{what} is shown"
    password = re.search(r":([^:@]+)@", here.compose("exec", "-T", "api", "cat", "/run/effillm/api/database-url"))
    assert password is not None
    assert password[1] not in said + seen
    assert httpx.get(f"{here.url}/v1/sweeps", trust_env=False).status_code == 401
    page = httpx.get(f"{here.url}/login", trust_env=False)
    assert (page.status_code, page.headers["content-type"].partition(";")[0]) == (200, "text/html")


def test_only_the_apis_port_is_published(here: Box) -> None:
    ports = {name: here.inspect(name)["NetworkSettings"]["Ports"] for name in LONG_RUNNING}
    published = {name: [port for port, where in (found or {}).items() if where] for name, found in ports.items()}
    assert published == {"postgres": [], "api": ["8750/tcp"], "fleet": [], "worker": []}


@pytest.mark.parametrize("service", ["api", "fleet", "worker"])
def test_a_container_is_not_root_and_writes_where_it_must_only(here: Box, service: str) -> None:
    status = here.compose("exec", "-T", service, "cat", "/proc/self/status")
    assert re.search(r"^Uid:\s+10001\s+10001", status, re.MULTILINE)
    for line in (r"CapEff:\s+0{16}$", r"CapBnd:\s+0{16}$", r"NoNewPrivs:\s+1$"):
        assert re.search(rf"^{line}", status, re.MULTILINE), line
    assert "Read-only file system" in here.compose("exec", "-T", service, "touch", "/opt/effillm/x", check=False)
    assert here.inspect(service)["State"]["Health"]["Status"] == "healthy"


def test_a_worker_sees_no_secret_but_its_own(here: Box) -> None:
    for path in ("/run/effillm/api", "/run/effillm/admin", "/run/effillm/database", "/run/effillm/fleet"):
        assert here.compose("exec", "-T", "worker", "sh", "-c", f"ls {path} 2>/dev/null || true").strip() == ""
    code = (
        "import os, psycopg2; c = psycopg2.connect(open(os.environ['EFFILLM_DATABASE_URL_FILE']).read()).cursor(); "
        "c.execute('SELECT session_user'); print(c.fetchone()[0]); c.execute('SELECT * FROM api_key')"
    )
    tried = here.compose("exec", "-T", "worker", "python", "-c", code, check=False)
    assert "effillm_node:worker" in tried
    assert "permission denied for table api_key" in tried


def test_the_command_line_tool_runs_beside_it(here: Box) -> None:
    assert "12" in here.compose("run", "--rm", "-T", "cli", "preview", "examples/quickstart.yaml")
    assert "cpu" in here.compose("run", "--rm", "-T", "cli", "devices")


def test_rows_survive_the_kill_of_every_service_and_the_box_going_down_and_up(here: Box) -> None:
    created = here.request("POST", "/v1/sweeps", content=SWEEP, headers={"Content-Type": "application/yaml"})
    sweep = created.raise_for_status().json()
    assert sweep["total"] == ROWS
    for service in ("worker", "api", "postgres", "fleet"):
        wait(here, "the API answers", lambda: is_ready(here))
        before = measured(here, sweep["id"])
        wait(here, f"another row before {service} is killed", lambda seen=before: measured(here, sweep["id"]) > seen)
        docker("kill", here.container(service))
        here.compose("up", "-d")
    wait(here, "the sweep's end", lambda: here.get(f"/v1/sweeps/{sweep['id']}")["state"] == "finished")
    for service in LONG_RUNNING:
        wait(
            here,
            f"{service} is healthy",
            lambda name=service: here.inspect(name)["State"]["Health"]["Status"] == "healthy",
        )
    rows = results(here, sweep["id"])
    assert [row["state"] for row in rows] == ["measured"] * ROWS
    assert len({row["job"] for row in rows}) == ROWS
    key, token = here.secret("the admin key"), here.secret("Ray's token")

    here.compose("restart")
    here.compose("down")
    here.up()
    assert results(here, sweep["id"]) == rows
    assert (here.secret("the admin key"), here.secret("Ray's token")) == (key, token)
    said = here.logs()
    assert "Traceback" not in said
    assert not any(here.secret(what) in said for what in SECRETS)

    backed_up_and_restored(here)
    assert results(here, sweep["id"]) == rows


def backed_up_and_restored(here: Box) -> None:
    """As docs/operations.md says, onto a box that has lost every volume."""
    steps = re.findall(r"^docker compose (.*)$", OPERATIONS.split("## Back up")[1].split("\n## ")[0], re.MULTILINE)
    assert len(steps) == 6
    for step in steps:
        here.shell(step)
        if step.startswith("exec -T postgres pg_dump"):
            here.shell("down -v")
    here.up()


def test_a_wrong_database_password_is_one_sentence(here: Box) -> None:
    for service, module in (("api", "effillm_server.api"), ("fleet", "effillm_worker.fleet")):
        url = "EFFILLM_DATABASE_URL=postgresql://effillm_fleet_login:wrong@postgres/effillm"
        said = here.compose("run", "--rm", "-T", "--no-deps", "-e", url, service, "python", "-m", module, check=False)
        assert "password authentication failed" in said
        assert "correct EFFILLM_DATABASE_URL" in said
        assert "Traceback" not in said
        assert "wrong" not in said, "the password is not shown"


def test_an_old_worker_joins_no_newer_cluster(here: Box) -> None:
    code = "import sys, ray; ray.__version__ = '2.59.0'; from effillm_worker.node import main; sys.exit(main(sys.argv[1:]))"
    said = here.compose(
        "run",
        "--rm",
        "-T",
        "--no-deps",
        "worker",
        "python",
        "-c",
        code,
        "--address",
        "fleet:6379",
        "--cpu",
        check=False,
    )
    assert re.search(r"Ray is 2\.59\.0 here and \S+ on the head; a Ray cluster needs the same on every node", said)


def test_a_process_that_dies_is_started_again_by_itself(here: Box) -> None:
    before = here.inspect("api")["RestartCount"]
    here.compose("exec", "-T", "api", "sh", "-c", "kill -9 $(cat /proc/1/task/1/children)", check=False)
    wait(here, "the API is back", lambda: here.inspect("api")["RestartCount"] > before and is_ready(here))


def test_the_gpu_profile_without_a_gpu_runtime_says_what_is_missing(here: Box) -> None:
    if "nvidia" in docker("info", "--format", "{{json .Runtimes}}"):
        said = here.compose("run", "--rm", "-T", "worker-gpu", check=False)
        assert "no GPU is visible" in said or "nvidia" in said.lower()
    else:
        docker("tag", "effillm-worker:cpu", "effillm-worker:no-gpu")
        here.environment["WORKER_GPU_IMAGE"] = "effillm-worker:no-gpu"
        said = here.compose("--profile", "gpu", "up", "-d", "worker-gpu", check=False)
        assert 'could not select device driver "nvidia"' in said
    # The same image without the reservation: our own sentence.
    said = run_image("python", "-m", "effillm_worker.node", "--address", "127.0.0.1:6379", "--gpu")
    assert "no GPU is visible here" in said


def test_a_volume_that_cannot_be_written_is_named() -> None:
    said = run_image("python", "-m", "effillm_server.secret_files", "/proc/none/secret")
    assert "/proc/none/secret cannot be written" in said
    assert "must belong to user 10001" in said


def run_image(*command: str) -> str:
    done = subprocess.run(
        ["docker", "run", "--rm", "--network", "none", "effillm-worker:cpu", *command], capture_output=True, timeout=120
    )
    assert done.returncode == 2
    return done.stderr.decode()


def is_ready(here: Box) -> bool:
    try:
        return httpx.get(f"{here.url}/readyz", trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def measured(here: Box, sweep_id: str) -> int:
    return int(here.get(f"/v1/sweeps/{sweep_id}")["counts"]["measured"])


def results(here: Box, sweep_id: str) -> list[dict[str, Any]]:
    """The rows, without what a measuring process adds when it ends, a moment after its last result."""
    found: list[dict[str, Any]] = here.get(f"/v1/sweeps/{sweep_id}/results?format=json")
    return [{name: value for name, value in row.items() if "released" not in name} for row in found]


def wait(here: Box, what: str, is_so: Any, within_s: float = 900.0) -> None:
    """Look every second; what answers nothing while a service is down is asked again."""
    until = time.monotonic() + within_s
    while True:
        try:
            if is_so():
                return
        except (httpx.HTTPError, AssertionError):
            pass
        if time.monotonic() > until:
            raise AssertionError(
                f"not within {within_s:g} s: {what}\n{here.compose('ps', check=False)}\n{here.logs()[-9000:]}"
            )
        time.sleep(1)
