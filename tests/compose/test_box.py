"""The compose file on a real engine: `make test-compose`. Real measurements, real kills, real backup; about a quarter of an hour."""

from __future__ import annotations

import json
import re
import secrets
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.compose_box import LONG_RUNNING, ROOT, Box, box, docker

pytestmark = [pytest.mark.compose, pytest.mark.timeout(3600)]

QUICKSTART = Path("examples/quickstart.yaml")
# The page's own commands measure one cell of it; all twelve are measured while services are killed.
SMALLER = {
    "  - {id: facebook/opt-125m, weights: synthetic}\n": "",
    "quantization: [fp32, int8, int4]": "quantization: [fp32]",
    "batch_size: [1, 4]": "batch_size: [1]",
    "sequence_length: [128]": "sequence_length: [16]",
    "generate_tokens: 32": "generate_tokens: 4",
}
ROWS = 12


@pytest.fixture(scope="module")
def documented(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Box, list[str]]]:
    """A box brought up, and measured on, by the commands of docs/deploy.md, one right after the other; the lines they wrote."""
    with box(tmp_path_factory.mktemp("box"), EFFILLM_LEASE_TTL_S="15") as made:
        (made.folder / QUICKSTART).write_text(shrunk((ROOT / QUICKSTART).read_text()))
        (commands,) = blocks("deploy.md", "## One box\n")[:1]
        if made.is_old:
            # Its builds have no network here and there is no choosing one; `make test-compose` has built the images.
            commands = replaced(commands, "docker compose build\n", "")
        said = made.script(commands).splitlines()
        shutil.copy(ROOT / QUICKSTART, made.folder / QUICKSTART)
        yield made, said


@pytest.fixture(scope="module")
def here(documented: tuple[Box, list[str]]) -> Box:
    return documented[0]


def blocks(page: str, heading: str) -> list[str]:
    """The fenced commands below this heading."""
    section = (ROOT / "docs" / page).read_text().split(heading)[1].split("\n## ")[0]
    return re.findall(r"^```\n(.*?)^```", section, re.MULTILINE | re.DOTALL)


def replaced(text: str, old: str, new: str) -> str:
    assert old in text, f"there is no {old!r} any more"
    return text.replace(old, new)


def shrunk(text: str) -> str:
    for large, small in SMALLER.items():
        text = replaced(text, large, small)
    return text


def test_the_documented_commands_measure_a_row_and_show_the_key(documented: tuple[Box, list[str]]) -> None:
    here, said = documented
    (sweep,) = here.get("/v1/sweeps")["items"]
    assert (sweep["state"], sweep["counts"]["measured"]) == ("finished", 1)
    assert any(sweep["id"] in line for line in said), "submit names the sweep"
    assert said[-1] == here.secret("the admin key")


def test_a_box_comes_up_with_a_key_of_its_own_and_says_nothing_secret(here: Box) -> None:
    said, seen = here.logs(), "".join(docker("inspect", here.container(name)) for name in LONG_RUNNING)
    hidden = here.secrets()
    assert min(map(len, hidden.values())) >= 40
    assert shown(hidden, said + seen) == []
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
    state = here.inspect(service)
    assert state["State"]["Health"]["Status"] == "healthy"
    # The measuring process has a limit of its own, so the worker has none unless told.
    assert (state["HostConfig"]["Memory"] > 0) == (service != "worker")
    assert state["HostConfig"]["PidsLimit"] > 0


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
    # The worker's own image has the tool too, for the runtimes of its box.
    assert here.compose("exec", "-T", "worker", "effillm", "--version").startswith("effillm ")
    listed = json.loads(here.compose("exec", "-T", "worker", "effillm", "runtime", "list", "--json"))
    assert [(one["name"], one["problem"]) for one in listed] == [("default", None)]


def test_rows_survive_the_kill_of_every_service_and_the_box_going_down_and_up(here: Box) -> None:
    quickstart = (ROOT / QUICKSTART).read_bytes()
    created = here.request("POST", "/v1/sweeps", content=quickstart, headers={"Content-Type": "application/yaml"})
    sweep = created.raise_for_status().json()
    assert sweep["total"] == ROWS
    for service in ("worker", "api", "postgres", "fleet"):
        wait(here, "the API answers", lambda: is_ready(here))
        before = measured(here, sweep["id"])
        wait(here, f"another row before {service} is killed", lambda seen=before: measured(here, sweep["id"]) > seen)
        docker("kill", here.container(service))
        here.compose("up", "-d")
    wait(here, "the sweep's end", lambda: here.get(f"/v1/sweeps/{sweep['id']}")["state"] == "finished")
    wait_healthy(here)
    rows = results(here, sweep["id"])
    assert [row["state"] for row in rows] == ["measured"] * ROWS
    assert len({row["job"] for row in rows}) == ROWS
    hidden, said = here.secrets(), here.logs()
    assert said.count("listening on http://") >= 2, "the log of the API that was killed and of the one after it"
    assert shown(hidden, said) == []

    here.compose("restart")
    wait_healthy(here)
    stopped_in_order(here)
    here.compose("down")
    here.up()
    assert results(here, sweep["id"]) == rows
    assert here.secrets() == hidden
    said = here.logs()
    assert "Traceback" not in said
    assert shown(hidden, said) == []

    backed_up_and_restored(here)
    assert results(here, sweep["id"]) == rows


def stopped_in_order(here: Box) -> None:
    """Everybody ends by the signal, with 0 and before compose's patience (137)."""
    stopped = {name: here.container(name) for name in ("api", "fleet", "worker")}
    here.compose("stop")
    ended = {name: json.loads(docker("inspect", one))[0]["State"] for name, one in stopped.items()}
    codes = {name: state["ExitCode"] for name, state in ended.items() if not state["Running"]}
    assert codes == dict.fromkeys(stopped, 0), here.logs()[-6000:]


def backed_up_and_restored(here: Box) -> None:
    """As docs/operations.md says, onto a box that has lost every volume."""
    dumped, restored = blocks("operations.md", "## Back up")
    here.script(dumped)
    here.compose("down", "-v")
    here.script(restored)
    here.up()


def test_passwords_are_rotated_by_the_documented_commands(here: Box) -> None:
    before = here.secrets()
    url = here.compose("exec", "-T", "api", "cat", "/run/effillm/api/database-url").strip()
    for commands in blocks("operations.md", "## Rotate secrets"):
        here.script(commands)
    wait_healthy(here)
    here.wait_free()
    after = here.secrets()
    same = {what for what in before if after[what] == before[what]}
    assert same == {"the admin key", "Ray's token"}
    code = f"import psycopg2; psycopg2.connect({url!r})"
    refused = here.compose("exec", "-T", "api", "python", "-c", code, check=False)
    assert "password authentication failed" in refused
    assert shown(before, here.logs()) == shown(after, here.logs()) == []


def test_a_wrong_database_password_is_one_sentence(here: Box) -> None:
    for service, module in (("api", "effillm_server.api"), ("fleet", "effillm_worker.fleet")):
        url = "EFFILLM_DATABASE_URL=postgresql://effillm_fleet_login:wrong@postgres/effillm"
        said = here.compose("run", "--rm", "-T", "--no-deps", "-e", url, service, "python", "-m", module, check=False)
        assert "password authentication failed" in said
        assert "correct EFFILLM_DATABASE_URL" in said
        assert "Traceback" not in said
        assert "wrong" not in said, "the password is not shown"


def test_a_node_with_a_wrong_database_password_says_so_before_it_joins(here: Box) -> None:
    url = "EFFILLM_DATABASE_URL=postgresql://effillm_fleet_login:wrong@postgres/effillm"
    command = ("python", "-m", "effillm_worker.node", "--address", "fleet:1", "--cpu")
    said = here.compose("run", "--rm", "-T", "--no-deps", "-e", url, "worker", *command, check=False)
    (away,) = (json.loads(line) for line in said.splitlines() if '"database.away"' in line)
    assert "password authentication failed" in away["why"]
    assert "correct EFFILLM_DATABASE_URL" in away["why"]
    assert "no Ray head answers at fleet:1" in said
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


def test_an_admin_key_of_ones_own_is_the_one_that_opens(here: Box) -> None:
    own = replace(here, environment=here.environment | {"EFFILLM_ADMIN_KEY": secrets.token_hex(32)}, _key=None)
    own.compose("up", "-d", "api")
    wait(own, "the API is back", lambda: is_ready(own))
    assert own.get("/v1/devices")["items"]
    assert "cpu" in own.compose("run", "--rm", "-T", "cli", "devices")
    assert own.environment["EFFILLM_ADMIN_KEY"] not in own.logs()
    here.compose("up", "-d", "api")
    wait(here, "the API is back", lambda: is_ready(here))


def test_a_volume_of_somebody_else_is_named(here: Box, tmp_path: Path) -> None:
    """Device locks in a folder of the box that belongs to whoever runs this test."""
    tmp_path.chmod(0o755)
    own = replace(here, environment=here.environment | {"LOCK_DIR": str(tmp_path)})
    said = own.compose("run", "--rm", "-T", "--no-deps", "worker", check=False)
    assert (
        "EFFILLM_LOCK_DIR=/run/lock/effillm cannot be written (Permission denied): make it belong to user 10001" in said
    )
    assert "Traceback" not in said


def test_a_secret_that_cannot_be_written_is_named() -> None:
    said = run_image("python", "-m", "effillm_server.secret_files", "/proc/none/secret")
    assert "/proc/none/secret cannot be written" in said
    assert "must belong to user 10001" in said


def run_image(*command: str) -> str:
    done = subprocess.run(
        ["docker", "run", "--rm", "--network", "none", "effillm-worker:cpu", *command], capture_output=True, timeout=120
    )
    assert done.returncode == 2
    return done.stderr.decode()


def shown(hidden: dict[str, str], said: str) -> list[str]:
    """Which of the secrets stand in what was said."""
    return [what for what, secret in hidden.items() if secret in said]


def wait_healthy(here: Box) -> None:
    for service in LONG_RUNNING:
        wait(
            here,
            f"{service} is healthy",
            lambda name=service: here.inspect(name)["State"]["Health"]["Status"] == "healthy",
        )


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
