"""The software a child measures with: versions, threads, linear algebra library, kernel, container, code version."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from effillm_server.contract.fingerprint import Software
from effillm_worker.engines.base import Environment

DISTRIBUTIONS = (
    "torch", "transformers", "tokenizers", "safetensors", "accelerate", "bitsandbytes", "gptqmodel", "optimum", "auto-gptq",
    "peft", "torchao", "numpy", "triton", "ray", "pydantic", "psutil", "nvidia-ml-py",
)  # fmt: skip
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "KMP_AFFINITY", "OMP_PROC_BIND")
ROOT = Path("/")


def software(environment: Environment) -> Software:
    """The software of this process; `environment` is what its engine says about itself."""
    threads: dict[str, int | str | None] = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    return Software(
        python=platform.python_version(),
        kernel=platform.release(),
        container=container(),
        versions={name: _version(name) for name in DISTRIBUTIONS},
        blas=environment.blas,
        threads=threads | environment.threads,
        code_version=code_version(),
    )


def container(root: Path = ROOT) -> str | None:
    """Which kind of container this is, None on a bare box or when it cannot be told."""
    if (root / "run/.containerenv").exists():
        return "podman"
    if (root / ".dockerenv").exists():
        return "docker"
    return "kubernetes" if "KUBERNETES_SERVICE_HOST" in os.environ else None


def code_version(tree: Path = Path(__file__).resolve().parents[2]) -> str:
    """Version of the package, with the git commit behind a plus where it runs from a checkout: `0.1.0+4f2c1d9e0a3b`."""
    package = _version("effillm") or "unknown"
    commit = _commit(tree / ".git")
    return f"{package}+{commit[:12]}" if commit else package


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _commit(git: Path) -> str | None:
    """Commit that HEAD points to, read from the files: a measuring child starts no git process."""
    try:
        if git.is_file():  # a linked worktree
            git = (git.parent / git.read_text().removeprefix("gitdir:").strip()).resolve()
        head = (git / "HEAD").read_text().strip()
        if not head.startswith("ref: "):
            return head
        name = head.removeprefix("ref: ")
        common = git / "commondir"
        shared = (git / common.read_text().strip()).resolve() if common.is_file() else git
        for folder in (git, shared):
            if (folder / name).is_file():
                return (folder / name).read_text().strip()
        packed = (shared / "packed-refs").read_text().splitlines()
        return next((line.split()[0] for line in packed if line.endswith(f" {name}")), None)
    except (OSError, IndexError):
        return None
