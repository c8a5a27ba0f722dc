"""`effillm runtime` as a user types it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest


def effillm(data_dir: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("EFFILLM_")}
    return subprocess.run(
        [sys.executable, "-m", "effillm_server.cli", "runtime", *arguments], capture_output=True, text=True, check=False,
        env=environment | {"EFFILLM_DATA_DIR": str(data_dir)},
    )  # fmt: skip


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, with_pip=False, symlinks=True)
    return folder / "bin" / "python"


def test_an_environment_of_ones_own_is_added_listed_and_checked(tmp_path: Path) -> None:
    added = effillm(tmp_path, "add", "mine", sys.executable)
    assert added.returncode == 0, added.stderr
    listed = {entry["name"]: entry for entry in json.loads(effillm(tmp_path, "list", "--json").stdout)}
    assert set(listed) == {"default", "mine"}
    assert listed["mine"]["interpreter"] == sys.executable
    assert listed["mine"]["versions"]["torch"] == listed["default"]["versions"]["torch"]
    checked = effillm(tmp_path, "check", "mine")
    assert checked.returncode == 0
    assert "a child can be started" in checked.stdout


def test_an_environment_without_the_packages_is_not_taken(tmp_path: Path, bare: Path) -> None:
    refused = effillm(tmp_path, "add", "bare", str(bare))
    assert refused.returncode == 2
    assert "lacks pydantic, pyyaml, torch" in refused.stderr
    assert not (tmp_path / "runtimes.json").exists()


def test_a_runtime_that_lost_its_packages_fails_its_check(tmp_path: Path, bare: Path) -> None:
    (tmp_path / "runtimes.json").write_text(json.dumps({"old": str(bare)}))
    checked = effillm(tmp_path, "check", "old")
    assert checked.returncode == 1
    assert "lacks pydantic" in checked.stdout


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("check", "older"), "there is no runtime 'older' on this box; there are default"),
        (("create", "llama"), "there is no recipe 'llama'; there are autogptq"),
        (("create", "autogptq", "--name", "Default!"), "is no name for a runtime"),
        (("create", "autogptq", "--name", "default"), "is no name for a runtime"),
        (("create", "autogptq", "--python", "/nowhere/python"), "/nowhere/python cannot be run"),
    ],
)
def test_what_cannot_be_done_says_what_could(tmp_path: Path, arguments: tuple[str, ...], sentence: str) -> None:
    refused = effillm(tmp_path, *arguments)
    assert refused.returncode == 2
    assert sentence in " ".join(refused.stderr.split())
    assert not (tmp_path / "runtimes").exists()


def test_a_runtime_is_not_built_over_another(tmp_path: Path) -> None:
    (tmp_path / "runtimes" / "autogptq").mkdir(parents=True)
    refused = effillm(tmp_path, "create", "autogptq")
    assert refused.returncode == 2
    assert "there is a runtime 'autogptq' already" in " ".join(refused.stderr.split())
