"""What the images are built from: locked with hashes, not root, and no more than the programs import."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DOCKERFILES = ("Dockerfile.api", "Dockerfile.worker")
LOCKS = ("api.txt", "build.txt", "worker-cpu.txt", "worker-cuda.txt")
# Only the command line tool and `effillm doctor --full` on an installation of one's own reach these.
PIN = re.compile(r"^([A-Za-z0-9._-]+)(?:\[[a-z,]+\])?==([^ \\;]+)")


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def lock(name: str) -> dict[str, str]:
    lines = (ROOT / "requirements" / name).read_text().splitlines()
    return {normal(found[1]): found[2] for line in lines if (found := PIN.match(line))}


def named(requirements: list[str]) -> set[str]:
    return {normal(re.split(r"[\[<>=~; ]", text)[0]) for text in requirements}


@pytest.mark.parametrize("name", LOCKS)
def test_every_line_of_a_lock_has_a_version_and_hashes(name: str) -> None:
    blocks = re.split(r"\n(?=\S)", (ROOT / "requirements" / name).read_text().split("make lock\n")[1].strip())
    assert blocks
    for block in blocks:
        assert PIN.match(block), block
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", block), block


def test_locks_hold_what_the_project_asks_for_at_the_tested_versions() -> None:
    tested = {normal(name): version for name, version in re.findall(r"^(\S+)==(\S+)$", constraints(), re.MULTILINE)}
    assert named(PROJECT["dependencies"]) <= lock("api.txt").keys(), "run `make lock`"
    for name in ("worker-cpu.txt", "worker-cuda.txt"):
        assert named(PROJECT["optional-dependencies"]["worker"]) <= lock(name).keys(), "run `make lock`"
    for name in LOCKS:
        for package, version in lock(name).items():
            if package in tested:
                assert version.partition("+")[0] == tested[package].partition("+")[0], (
                    f"{package} in {name}: run `make lock`"
                )


def constraints() -> str:
    return (ROOT / "constraints.txt").read_text()


def test_the_api_image_has_neither_ray_nor_torch() -> None:
    assert not {"ray", "torch", "transformers", "bitsandbytes"} & lock("api.txt").keys()
    assert "effillm_worker" not in (ROOT / "Dockerfile.api").read_text()


def test_the_variants_differ_in_torch_and_what_it_brings() -> None:
    cpu, cuda = lock("worker-cpu.txt"), lock("worker-cuda.txt")
    assert cpu["torch"] == f"{cuda['torch']}+cpu"
    assert {name for name in cuda.keys() - cpu.keys() if not name.startswith(("nvidia-", "cuda-"))} <= {"triton"}
    assert not {name for name in cpu if name.startswith(("nvidia-c", "cuda-"))}


def test_the_worker_image_has_what_the_worker_imports() -> None:
    """Of what stands at the top of its files, of the shared part of the server, and of the command line tool beside it."""
    listed = named([line for line in (ROOT / "requirements/worker.in").read_text().splitlines() if line[:1].isalpha()])
    shared = [ROOT / "effillm_server" / part for part in ("contract", "catalog", "ledger", "cli", "runtimes")]
    files = [*(ROOT / "effillm_worker").rglob("*.py"), *(f for part in shared for f in part.rglob("*.py"))]
    files += (ROOT / "effillm_server").glob("*.py")
    known = packages_distributions()
    needed: dict[str, str] = {}
    for file in files:
        for node in ast.parse(file.read_text()).body:
            for name in imported(node):
                if name not in sys.stdlib_module_names and not name.startswith("effillm"):
                    needed[normal(known.get(name, [name])[0])] = file.name
    assert {"httpx", "ray", "sqlalchemy", "typer"} <= needed.keys()
    for variant in ("worker-cpu.txt", "worker-cuda.txt"):
        locked = lock(variant).keys()
        assert {name: file for name, file in needed.items() if name not in locked} == {}, "name it in worker.in"
        assert listed <= locked, "run `make lock`"


def imported(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name.split(".")[0] for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
        return [node.module.split(".")[0]]
    return []


@pytest.mark.parametrize("name", DOCKERFILES)
def test_a_dockerfile_is_read_by_the_classic_builder_and_ends_as_a_user(name: str) -> None:
    text = (ROOT / name).read_text()
    assert not re.search(r"RUN --|COPY --(?!from=)|<<[A-Z'\"]|^# syntax", text, re.MULTILINE), "BuildKit only"
    assert re.findall(r"^USER (.*)$", text, re.MULTILINE) == ["10001:10001"]
    assert re.findall(r"^FROM .*$", text, re.MULTILINE) == ["FROM ${PYTHON_IMAGE} AS build", "FROM ${PYTHON_IMAGE}"]
    for instruction in ("HEALTHCHECK", "STOPSIGNAL SIGTERM", "CMD ["):
        assert f"\n{instruction}" in text
    for label in ("title", "description", "licenses", "version", "revision"):
        assert f"org.opencontainers.image.{label}=" in text
    installs = re.findall(r"pip --python \S+ install (.*)", text)
    assert installs
    assert all("--require-hashes" in one or "dist/effillm-" in one for one in installs)


def test_what_a_dockerfile_copies_is_let_into_the_build_and_exists() -> None:
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for name in DOCKERFILES:
        for line in re.findall(r"^COPY (?!--from)(.*)$", (ROOT / name).read_text(), re.MULTILINE):
            for source in line.split()[:-1]:
                assert any(source == one or source.startswith(f"{one}/") for one in let_in), source
                for variant in ("cpu", "cuda"):
                    assert (ROOT / source.replace("${VARIANT}", variant)).exists()
