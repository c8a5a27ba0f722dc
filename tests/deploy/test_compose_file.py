"""The compose file keeps its promises, read as compose reads it: merged, interpolated, from the file that is shipped."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from effillm_server.settings import PREFIX, Settings

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docker-compose.yml").read_text()
EXAMPLE = (ROOT / ".env.example").read_text()
REFERENCE = re.compile(r"(?<!\$)\$\{([A-Z][A-Z0-9_]*)(:?-)([^}]*)\}")
# Read by the programs and no setting of ours.
FOREIGN = {"HF_TOKEN", "RAY_AUTH_TOKEN_PATH", "NVIDIA_DRIVER_CAPABILITIES", "FIRST_ADMIN_KEY"}
# Of the command line tool, not of a server's process.
OF_CLI = {"EFFILLM_URL", "EFFILLM_API_KEY"}
# Settings that an operator of the compose file has no say in, and why.
NOT_OFFERED = {
    "DATABASE_URL": "each service has a login of its own, in a file", "DATABASE_URL_FILE": "the services' own",
    "RAY_ADDRESS": "the service fleet", "DATA_DIR": "a volume", "HOST": "inside the container; see PUBLISH",
    "PORT": "inside the container; see PUBLISH", "MODEL_ROOT": "see MODELS", "LOCK_DIR": "see LOCK_DIR without prefix",
    "ADMIN_KEY_FILE": "a volume", "REQUIRE_KEYS": "keys are always asked for beyond loopback",
    "AUTOSCALE": "one box does not scale", "AUTOSCALE_IDLE_S": "one box does not scale",
}  # fmt: skip
ONE_SHOT = {"secrets", "migrate", "cli"}


def interpolated(environment: dict[str, str] | None = None) -> dict[str, Any]:
    given = environment or {}
    text = REFERENCE.sub(lambda m: (given.get(m[1]) or m[3]) if m[2] == ":-" else given.get(m[1], m[3]), TEXT)
    found: dict[str, Any] = yaml.safe_load(text)["services"]
    return found


SERVICES = interpolated()


def compose() -> list[str] | None:
    """The compose that `make test-compose` would take, or another that is installed; None where there is none."""
    given = os.environ.get("COMPOSE")
    for words in [shlex.split(given)] if given else [["docker", "compose"], ["docker-compose"]]:
        if (
            shutil.which(words[0])
            and subprocess.run([*words, "version"], capture_output=True, timeout=60).returncode == 0
        ):
            return words
    return None


def test_compose_itself_takes_the_file_with_every_profile_and_refuses_a_mistake(tmp_path: Path) -> None:
    program = compose()
    if program is None:
        pytest.skip("no compose is installed")
    shutil.copy(ROOT / ".env.example", tmp_path / ".env")

    def said_of(text: str) -> tuple[int, str]:
        (tmp_path / "docker-compose.yml").write_text(text)
        command = [*program, "--profile", "gpu", "--profile", "cli", "config", "--quiet"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
        return done.returncode, done.stdout + done.stderr

    assert said_of(TEXT) == (0, "")
    code, said = said_of(TEXT.replace("shm_size:", "shm_sise:"))
    assert code != 0
    assert "shm_sise" in said


def test_the_file_and_the_page_bring_a_box_up_by_the_same_command() -> None:
    page = (ROOT / "docs/deploy.md").read_text().split("## One box\n")[1].split("```")[1]
    assert "docker compose up -d\n" in page
    assert TEXT.startswith("# One box: `docker compose up -d`.")
    # 1.29 has no `up --wait`.
    assert "--wait" not in TEXT + page


def test_only_the_api_publishes_a_port_and_on_loopback_unless_told_otherwise() -> None:
    ports = {name: service["ports"] for name, service in SERVICES.items() if service.get("ports")}
    assert ports == {"api": ["127.0.0.1:8750:8750"]}
    assert yaml.safe_load(TEXT)["networks"]["inside"] == {"internal": True}
    assert all(SERVICES[name]["networks"] == ["inside"] for name in ("postgres", "fleet", "migrate", "cli"))


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_runs_without_rights_it_does_not_need(name: str) -> None:
    service = SERVICES[name]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["read_only"] is True
    assert service["init"] is True
    # The measuring process has a limit of its own; a worker's is the operator's to set.
    assert (str(service["mem_limit"]) == "0") == name.startswith("worker")
    assert name in ONE_SHOT or service["pids_limit"] > 0
    assert not service.get("privileged")
    assert service.get("user") is None, "the image's own, which is not root"
    added = service.get("cap_add", [])
    assert added == [] or name == "postgres"
    assert not any("docker.sock" in str(volume) for volume in service["volumes"])


def test_services_come_back_by_themselves_and_one_shots_do_not() -> None:
    for name, service in SERVICES.items():
        assert service["restart"] == ("no" if name in ONE_SHOT else "unless-stopped"), name


def test_nothing_starts_before_what_it_needs_is_there() -> None:
    order = {
        name: {on: how["condition"] for on, how in s.get("depends_on", {}).items()} for name, s in SERVICES.items()
    }
    assert order == {
        "secrets": {}, "postgres": {"secrets": "service_completed_successfully"}, "migrate": {"postgres": "service_healthy"},
        "api": {"migrate": "service_completed_successfully"}, "fleet": {"migrate": "service_completed_successfully"},
        "worker": {"fleet": "service_healthy"}, "worker-gpu": {"fleet": "service_healthy"}, "cli": {},
    }  # fmt: skip


def test_each_secret_is_mounted_only_where_it_is_needed_and_written_only_where_it_is_made() -> None:
    readers: dict[str, dict[str, str]] = {}
    for name, service in SERVICES.items():
        for volume in service["volumes"]:
            source, _, *mode = volume.split(":")
            if source.endswith(("-secret", "-key")):
                readers.setdefault(source, {})[name] = "".join(mode) or "rw"
    assert readers == {
        "database-secret": {"secrets": "rw", "postgres": "ro", "migrate": "ro"},
        "ray-secret": {"secrets": "rw", "fleet": "ro", "worker": "ro", "worker-gpu": "ro"},
        "api-secret": {"migrate": "rw", "api": "ro"}, "fleet-secret": {"migrate": "rw", "fleet": "ro"},
        "worker-secret": {"migrate": "rw", "worker": "ro"}, "worker-gpu-secret": {"migrate": "rw", "worker-gpu": "ro"},
        "admin-key": {"api": "rw", "cli": "ro"},
    }  # fmt: skip


def test_the_gpu_worker_waits_for_its_profile_and_reserves_every_gpu() -> None:
    gpu = SERVICES["worker-gpu"]
    assert gpu["profiles"] == ["gpu"]
    (device,) = gpu["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}
    assert (gpu["build"]["args"]["VARIANT"], SERVICES["worker"]["build"]["args"]["VARIANT"]) == ("cuda", "cpu")
    assert interpolated({"CPU_WORKERS": "0"})["worker"]["deploy"]["replicas"] == 0


def test_a_nodes_login_carries_the_name_its_node_has() -> None:
    logins = [part.removeprefix("--login=") for part in SERVICES["migrate"]["command"] if part.startswith("--login=")]
    files = dict(login.split("=") for login in logins)
    for name in ("worker", "worker-gpu"):
        assert SERVICES[name]["hostname"] == name
        assert files[f"node:{name}"] == SERVICES[name]["environment"]["EFFILLM_DATABASE_URL_FILE"]
    for name in ("api", "fleet"):
        assert files[name] == SERVICES[name]["environment"]["EFFILLM_DATABASE_URL_FILE"]


def test_every_variable_given_to_a_service_is_a_setting() -> None:
    known = {PREFIX + name.upper() for name in Settings.model_fields} | FOREIGN | OF_CLI
    for name, service in SERVICES.items():
        if name != "postgres":
            assert service.get("environment", {}).keys() <= known, name


def test_every_setting_can_be_given_or_says_why_not() -> None:
    assert NOT_OFFERED.keys() <= {name.upper() for name in Settings.model_fields}
    offered = {name.removeprefix(PREFIX) for name, _, _ in REFERENCE.findall(TEXT) if name.startswith(PREFIX)}
    settings = {name.upper() for name in Settings.model_fields}
    assert settings - offered == NOT_OFFERED.keys()


def test_the_example_explains_every_variable_with_its_default_and_no_other() -> None:
    written = dict(re.findall(r"^([A-Z][A-Z0-9_]*)=(.*)$", EXAMPLE, re.MULTILINE))
    defaults = {name: default for name, _, default in REFERENCE.findall(TEXT)}
    # Compose's own: which profiles are on.
    assert written == defaults | {"COMPOSE_PROFILES": ""}
    lines = EXAMPLE.splitlines()
    for name in written:
        before = lines[lines.index(f"{name}={written[name]}") - 1]
        assert before.startswith("#") or re.match("[A-Z]", before), f"{name} is explained in the lines above it"


def test_the_example_loads_as_settings() -> None:
    given = dict(line.split("=", 1) for line in EXAMPLE.splitlines() if line and not line.startswith("#"))
    assert Settings.from_environment(given) == Settings.from_environment({})


def test_every_image_is_pinned_to_a_version() -> None:
    for name, service in SERVICES.items():
        tag = service["image"].partition(":")[2]
        assert tag
        assert tag != "latest" or service["image"] == "effillm-api:latest", name
