"""Runtimes by name: Python environments in which cells are measured, registered below the data directory, and what they hold."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from effillm_server.errors import BadInput
from effillm_server.settings import Settings

DEFAULT = "default"
REGISTER = "runtimes.json"
HERE = Path(__file__).parent
PROBE_S = 120.0
# What the measuring child imports besides the standard library, by import name, with the name of the package.
NEEDED = {"pydantic": "pydantic", "yaml": "pyyaml"}
FOR_MODELS = {
    "torch": "torch",
    "transformers": "transformers",
    "accelerate": "accelerate",
    "safetensors": "safetensors",
}
SHOWN = ("torch", "transformers", "accelerate", "bitsandbytes", "gptqmodel", "optimum", "auto-gptq", "torchao", "peft")

_PROBE = """
import importlib.metadata as m, importlib.util as u, json, sys
modules, packages = json.loads(sys.argv[1])
versions = {}
for name in packages:
    try: versions[name] = m.version(name)
    except m.PackageNotFoundError: pass
print(json.dumps({"python": sys.version.split()[0], "missing": [n for n in modules if u.find_spec(n) is None], "versions": versions}))
"""


@dataclass(frozen=True)
class Recipe:
    """An environment that `effillm runtime create` can build: its locked list, and the Python it is locked for."""

    name: str
    python: str
    about: str

    @property
    def locked(self) -> Path:
        return HERE / f"{self.name}.txt"


RECIPES = {
    "autogptq": Recipe("autogptq", "3.11", "auto-gptq 0.7.1 with transformers 4.46.3, on a processor in float32"),
}


@dataclass(frozen=True)
class Found:
    """What an interpreter says of its environment. `problem` is set when it could not say anything."""

    python: str | None = None
    missing: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    problem: str | None = None


def known(settings: Settings) -> dict[str, str]:
    """Interpreter by runtime: those registered below the data directory; EFFILLM_RUNTIMES wins."""
    return registered(settings.data_dir) | settings.runtimes


def registered(data_dir: Path) -> dict[str, str]:
    """What `effillm runtime` has written down. Raises BadInput when the file is no list of runtimes."""
    path = data_dir / REGISTER
    try:
        read = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise BadInput(f"{path} cannot be read as JSON ({error}): repair or remove it") from None
    if not isinstance(read, dict) or not all(isinstance(value, str) for value in read.values()):
        raise BadInput(f"{path} is not an object of runtime name to interpreter: repair or remove it")
    return read


def register(data_dir: Path, name: str, interpreter: Path) -> None:
    """Write a runtime down, whole or not at all."""
    data_dir.mkdir(parents=True, exist_ok=True)
    content = json.dumps(registered(data_dir) | {name: str(interpreter)}, indent=2, sort_keys=True)
    part = data_dir / f".{REGISTER}.{os.getpid()}"
    part.write_text(content + "\n")
    part.replace(data_dir / REGISTER)


def probe(interpreter: str, modules: Iterable[str] = (*NEEDED, *FOR_MODELS)) -> Found:
    """Ask an environment which of these modules it lacks and which versions it has; nothing of it is imported."""
    question = json.dumps([list(modules), list(SHOWN)])
    try:
        done = subprocess.run(
            [interpreter, "-I", "-c", _PROBE, question], capture_output=True, text=True, timeout=PROBE_S, check=False
        )
    except OSError as error:
        return Found(problem=f"{interpreter} cannot be run: {error.strerror}")
    except subprocess.TimeoutExpired:
        return Found(problem=f"{interpreter} did not answer within {PROBE_S:g} s")
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1][:200]
        return Found(problem=f"{interpreter} does not run: {last}")
    told = json.loads(done.stdout)
    return Found(told["python"], tuple(told["missing"]), told["versions"])


def lacking(interpreter: str, *, with_models: bool = True) -> str | None:
    """Why a child cannot be started in this environment, the packages by name; None when it can."""
    names = NEEDED | (FOR_MODELS if with_models else {})
    found = probe(interpreter, names)
    if found.problem is not None:
        return found.problem
    if found.missing:
        packages = ", ".join(names[module] for module in found.missing)
        return f"lacks {packages}: install it there ({interpreter} -m pip install {packages.replace(',', '')})"
    return None


def own_interpreter() -> str:
    """The interpreter of the default runtime."""
    return sys.executable
