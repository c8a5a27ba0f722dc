"""The systemd units of a lab: read by systemd itself where it is installed, and by what must agree between them everywhere."""

from __future__ import annotations

import configparser
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from effillm_server.ledger import roles
from effillm_server.settings import PREFIX, Settings
from effillm_worker import node

FOLDER = Path(__file__).parents[2] / "deploy/lab"
UNITS = sorted(file.name for file in FOLDER.glob("*.service"))
PYTHON = "/opt/effillm/bin/python"
FOREIGN = {"RAY_AUTH_TOKEN_PATH", "NODE_OPTIONS"}


def unit(name: str) -> configparser.ConfigParser:
    # systemd allows a key more than once; none of ours does, and this refuses it.
    parsed = configparser.ConfigParser(interpolation=None, comment_prefixes=("#",), delimiters=("=",))
    parsed.optionxform = str  # type: ignore[assignment,method-assign]
    parsed.read(FOLDER / name)
    return parsed


def environment() -> dict[str, str]:
    lines = (FOLDER / "lab.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


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
