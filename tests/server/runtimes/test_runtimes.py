"""The register of runtimes, and what an environment says of itself."""

from __future__ import annotations

import json
import stat
import sys
import venv
from pathlib import Path

import pytest

from effillm_server import runtimes
from effillm_server.errors import BadInput
from effillm_server.settings import Settings


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with nothing in it."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, with_pip=False, symlinks=True)
    return folder / "bin" / "python"


def test_what_is_registered_is_known_and_the_variable_wins(tmp_path: Path) -> None:
    runtimes.register(tmp_path, "old", Path("/one/python"))
    runtimes.register(tmp_path, "older", Path("/two/python"))
    settings = Settings(data_dir=tmp_path, runtimes={"old": "/three/python"})
    assert runtimes.known(settings) == {"old": "/three/python", "older": "/two/python"}
    assert [path.name for path in tmp_path.iterdir()] == [runtimes.REGISTER]


def test_no_register_means_no_runtimes(tmp_path: Path) -> None:
    assert runtimes.known(Settings(data_dir=tmp_path / "nothing")) == {}


@pytest.mark.parametrize("content", ["{", "[1]", '{"a": 1}'])
def test_a_register_that_cannot_be_read_says_so(tmp_path: Path, content: str) -> None:
    (tmp_path / runtimes.REGISTER).write_text(content)
    with pytest.raises(BadInput, match="repair or remove it"):
        runtimes.registered(tmp_path)


def test_an_environment_tells_its_versions_without_importing_them() -> None:
    found = runtimes.probe(sys.executable)
    assert (found.problem, found.missing) == (None, ())
    assert found.python == sys.version.split()[0]
    assert "torch" in found.versions


def test_packages_an_environment_lacks_are_named_as_they_are_installed(bare: Path) -> None:
    why = runtimes.lacking(str(bare))
    assert why is not None
    assert "lacks pydantic, pyyaml, torch, transformers, accelerate, safetensors" in why
    assert f"{bare} -m pip install pydantic pyyaml torch" in why
    without_models = runtimes.lacking(str(bare), with_models=False)
    assert without_models is not None and "torch" not in without_models


def test_an_interpreter_that_is_none_is_an_answer(tmp_path: Path) -> None:
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho cannot open display >&2\nexit 3\n")
    broken.chmod(broken.stat().st_mode | stat.S_IXUSR)
    assert "cannot open display" in str(runtimes.lacking(str(broken)))
    assert "cannot be run" in str(runtimes.lacking(str(tmp_path / "nothing")))


@pytest.mark.parametrize("name", runtimes.RECIPES)
def test_a_recipes_list_is_locked_and_holds_all_a_child_needs(name: str) -> None:
    lines = [line for line in runtimes.RECIPES[name].locked.read_text().splitlines() if line and line[0] != "#"]
    pinned = dict(line.split("==") for line in lines)
    assert len(pinned) == len(lines)
    assert {*runtimes.NEEDED.values(), *runtimes.FOR_MODELS.values()} <= {package.lower() for package in pinned}
    assert json.dumps(pinned) == json.dumps({package: version.strip() for package, version in pinned.items()})
