from __future__ import annotations

import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest

from effillm_worker.engines.base import Environment
from effillm_worker.measure.software import code_version, container, software


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    done = subprocess.run(["git", "-C", str(folder), *identity, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_software_holds_versions_threads_and_the_engines_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    found = software(Environment(blas="some BLAS", threads={"intra_op": 3, "inter_op": 1}))
    assert found.versions["pydantic"] == version("pydantic")
    assert found.versions["auto-gptq"] is None
    assert found.blas == "some BLAS"
    assert found.threads | {"OMP_NUM_THREADS": "3", "intra_op": 3, "inter_op": 1} == found.threads


def test_code_version_names_package_and_commit_of_a_checkout(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    git(tmp_path, "commit", "-q", "--allow-empty", "-m", "first")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert code_version(tmp_path) == f"{version('effillm')}+{commit[:12]}"
    git(tmp_path, "pack-refs", "--all")
    assert code_version(tmp_path).endswith(commit[:12])
    git(tmp_path, "checkout", "-q", "--detach")
    assert code_version(tmp_path).endswith(commit[:12])


def test_code_version_of_a_linked_worktree_is_its_own_commit(tmp_path: Path) -> None:
    main, linked = tmp_path / "main", tmp_path / "linked"
    main.mkdir()
    git(main, "init", "-q")
    git(main, "commit", "-q", "--allow-empty", "-m", "first")
    git(main, "worktree", "add", "-q", "-b", "other", str(linked))
    git(linked, "commit", "-q", "--allow-empty", "-m", "second")
    assert code_version(linked).endswith(git(linked, "rev-parse", "HEAD")[:12])


def test_code_version_outside_of_a_checkout_is_the_packages(tmp_path: Path) -> None:
    assert code_version(tmp_path) == version("effillm")


def test_container_is_told_by_the_files_its_engine_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    assert container(tmp_path) is None
    (tmp_path / ".dockerenv").touch()
    assert container(tmp_path) == "docker"
    (tmp_path / "run").mkdir()
    (tmp_path / "run/.containerenv").touch()
    assert container(tmp_path) == "podman"
