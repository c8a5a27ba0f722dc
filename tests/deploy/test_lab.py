"""The systemd units of a lab: read by systemd itself where it is installed, and by what must agree between them everywhere."""

from __future__ import annotations

import configparser
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from effillm_server.errors import BadInput
from effillm_server.ledger import roles
from effillm_server.settings import PREFIX, Settings
from effillm_worker import node

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy/lab"
UNITS = sorted(file.name for file in FOLDER.glob("*.service"))
PYTHON = "/opt/effillm/bin/python"
FOREIGN = {"RAY_AUTH_TOKEN_PATH", "NODE_OPTIONS"}
# Settings that lab.env does not offer, and why.
NOT_OFFERED = {
    "DATABASE_URL": "in a file, which other users cannot read", "ADMIN_KEY": "in a file, made on first start",
    "REQUIRE_KEYS": "keys are always asked for beyond loopback",
    "AUTOSCALE": "bare boxes do not come when asked for", "AUTOSCALE_IDLE_S": "bare boxes do not go when let go",
}  # fmt: skip
# The blocks of commands for a lab, those for the head, and those for every other box; the first is for both.
BLOCKS = re.findall(
    r"^```\n(.*?)^```",
    (ROOT / "docs/deploy.md").read_text().split("## A lab of bare boxes")[1].split("\n## ")[0],
    re.MULTILINE | re.DOTALL,
)
HEAD = "".join(block for block in BLOCKS if block is BLOCKS[0] or "owner-url" in block)
BOX = "".join(block for block in BLOCKS if block is BLOCKS[0] or "owner-url" not in block)


def unit(name: str) -> configparser.ConfigParser:
    # systemd allows a key more than once; none of ours does, and this refuses it.
    parsed = configparser.ConfigParser(interpolation=None, comment_prefixes=("#",), delimiters=("=",))
    parsed.optionxform = str  # type: ignore[assignment,method-assign]
    parsed.read(FOLDER / name)
    return parsed


def environment() -> dict[str, str]:
    lines = (FOLDER / "lab.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def in_force(name: str) -> dict[str, str]:
    """The environment that systemd and `env` give to the unit's program."""
    service = unit(name)["Service"]
    given = dict(one.split("=", 1) for one in shlex.split(service.get("Environment", "")))
    # systemd reads the file after the unit's own assignments, and the file wins.
    given |= environment() if "EnvironmentFile" in service else {}
    words = service["ExecStart"].split()
    changes = words[1 : words.index(PYTHON)]
    while changes:
        word = changes.pop(0)
        if word == "-u":
            given.pop(changes.pop(0), None)
        else:
            given |= [word.split("=", 1)]
    return given


def made_on(commands: str) -> set[str]:
    """Files that the commands of the page put on a box, and those that the units installed there write."""
    made = {line.split()[-1] for line in commands.splitlines() if line.startswith("install -m 0640 -g effillm ")}
    if "effillm-migrate.service" in installed(commands):
        words = unit("effillm-migrate.service")["Service"]["ExecStart"].split()
        made |= {str(roles.parse_login(word[8:]).file) for word in words if word.startswith("--login=")}
    return made


def installed(commands: str) -> list[str]:
    """Units that the commands install, in their order."""
    found = []
    for stem, names in re.findall(
        r"^install -m 0644 deploy/lab/([a-z-]+)(\{[a-z,]+\}|)\.service \S", commands, re.MULTILINE
    ):
        found += [f"{stem}{name}.service" for name in names.strip("{}").split(",")]
    return found


def test_there_is_a_unit_for_each_process() -> None:
    assert [f"effillm-{name}.service" for name in ("api", "fleet", "head", "migrate", "node")] == UNITS


def test_systemd_takes_the_units_as_they_are(tmp_path: Path) -> None:
    for name in UNITS:
        # The program is not installed here; everything else is as shipped.
        text = (FOLDER / name).read_text().replace(PYTHON, sys.executable)
        (tmp_path / name).write_text(text)
    if shutil.which("systemd-analyze") is None:
        assert all(unit(name).sections() == ["Unit", "Service", "Install"] for name in UNITS)
        return
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *(str(tmp_path / name) for name in UNITS)],
        capture_output=True, text=True, env={"SYSTEMD_UNIT_PATH": f"{tmp_path}:", "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    ours = [line for line in done.stderr.splitlines() if "effillm" in line]
    assert (done.returncode, ours) == (0, [])


@pytest.mark.parametrize("name", UNITS)
def test_a_unit_runs_without_rights_it_does_not_need(name: str) -> None:
    service = unit(name)["Service"]
    assert service["User"] == "effillm"
    expected = {"NoNewPrivileges": "yes", "ProtectSystem": "strict", "ProtectHome": "yes", "CapabilityBoundingSet": ""}
    assert {key: service[key] for key in expected} == expected


@pytest.mark.parametrize("name", [one for one in UNITS if "migrate" not in one])
def test_a_service_comes_back_unless_its_settings_are_wrong(name: str) -> None:
    service = unit(name)["Service"]
    assert (service["Restart"], service["RestartPreventExitStatus"]) == ("on-failure", "2")
    assert service["EnvironmentFile"] == "/etc/effillm/lab.env"


def test_a_box_that_boots_before_its_postgres_comes_up_by_itself() -> None:
    migrate = unit("effillm-migrate.service")["Service"]
    assert (migrate["Type"], migrate["Restart"], migrate["RestartSec"]) == ("oneshot", "on-failure", "10")
    assert migrate["RestartPreventExitStatus"] == "2"
    for name in ("effillm-api.service", "effillm-fleet.service"):
        section = unit(name)["Unit"]
        assert "effillm-migrate.service" in section["After"].split()
        assert "effillm-migrate.service" in section["Wants"].split()
        assert "effillm-migrate.service" not in section.get("Requires", "").split(), "its first failure would be theirs"


def test_every_unit_that_the_page_enables_was_installed_before() -> None:
    for commands, expected in ((HEAD, ["api", "fleet", "head", "migrate"]), (BOX, ["node"])):
        enabled = [
            name for line in re.findall(r"^systemctl enable --now (.+)$", commands, re.M) for name in line.split()
        ]
        assert sorted(enabled) == [f"effillm-{name}" for name in expected]
        assert sorted(f"{name}.service" for name in enabled) == sorted(installed(commands))
        order = [commands.index(mark) for mark in ("useradd", "install -m 0644", "daemon-reload", "enable --now")]
        assert order == sorted(order)


def test_every_program_that_the_page_runs_is_there() -> None:
    for line in "".join(BLOCKS).splitlines():
        words = [word for word in line.split() if not re.match("[A-Z_]+=", word)]
        assert words[0] in {"useradd", "python3.11", "install", "systemctl"} or words[0].startswith(
            "/opt/effillm/bin/"
        ), line


@pytest.mark.parametrize("name", UNITS)
def test_a_unit_reads_only_files_that_are_made_on_its_box(name: str, tmp_path: Path) -> None:
    (commands,) = (one for one in (HEAD, BOX) if name in installed(one))
    for file in made_on(commands):
        there = tmp_path / file.lstrip("/")
        there.parent.mkdir(parents=True, exist_ok=True)
        there.write_text("postgresql://somebody:secret@db.lab/effillm")
    given = {key: f"{tmp_path}{value}" if value.startswith("/") else value for key, value in in_force(name).items()}
    settings = Settings.from_environment(given)
    # The head writes down no devices, so it needs no database; everybody else does.
    assert (settings.database_url is None) == (name == "effillm-head.service")
    if "effillm_worker" in unit(name)["Service"]["ExecStart"] and "RAY_AUTH_TOKEN_PATH" in given:
        assert Path(given["RAY_AUTH_TOKEN_PATH"]).exists(), "else the head's own, in its data directory"


def test_the_check_of_files_finds_one_that_nobody_makes(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"EFFILLM_DATABASE_URL_FILE=.* cannot be read"):
        Settings.from_environment({"EFFILLM_DATABASE_URL_FILE": str(tmp_path / "etc/effillm/database-url")})
    assert "/etc/effillm/database-url" in made_on(BOX) - made_on(HEAD)


def test_a_child_that_runs_out_of_memory_does_not_end_its_node() -> None:
    service = unit("effillm-node.service")["Service"]
    assert (service["OOMPolicy"], service["Delegate"]) == ("continue", "memory pids")


def test_every_command_is_one_that_its_program_understands() -> None:
    for name in UNITS:
        words = unit(name)["Service"]["ExecStart"].split()
        words = words[words.index(PYTHON) :]
        assert words[1] == "-m"
        if words[2] == "effillm_worker.node":
            options = [
                word.replace("${EFFILLM_RAY_ADDRESS}", environment()["EFFILLM_RAY_ADDRESS"]) for word in words[3:]
            ]
            node._parser().parse_args([word for word in options if word != "$NODE_OPTIONS"])
        elif words[2] == "effillm_server.ledger.roles":
            options = roles._parser().parse_args(words[3:])
            assert [roles.parse_login(text).name for text in options.login] == [
                "effillm_api_login",
                "effillm_fleet_login",
            ]
        else:
            assert words[2:] in (["effillm_worker.fleet"], ["effillm_server.api"])


def test_head_and_fleet_see_the_same_sockets_and_node_paths_are_short_enough_for_them() -> None:
    head, fleet = unit("effillm-head.service"), unit("effillm-fleet.service")
    assert "--temp-dir /run/effillm/ray" in head["Service"]["ExecStart"]
    assert head["Service"]["RuntimeDirectory"] == fleet["Service"]["RuntimeDirectory"] == "effillm"
    assert len("/run/effillm/ray") <= node.LONGEST_TEMP_DIR
    assert "lock/effillm" in unit("effillm-node.service")["Service"]["RuntimeDirectory"]


def test_every_variable_is_a_setting() -> None:
    given = environment()
    assert given.keys() <= {PREFIX + name.upper() for name in Settings.model_fields} | FOREIGN
    del given["EFFILLM_DATABASE_URL_FILE"]
    Settings.from_environment(given)


def test_every_setting_can_be_given_or_says_why_not() -> None:
    offered = {name.removeprefix(PREFIX) for name in environment() if name.startswith(PREFIX)}
    assert {name.upper() for name in Settings.model_fields} - offered == NOT_OFFERED.keys()
