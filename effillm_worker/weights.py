"""Where a model's weights come from: the hub, a folder below the model root, or a synthetic checkpoint made once.

Nothing a model ships is ever executed: no remote code, and no pickled weights unless an operator's setting allows them.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from effillm_server.catalog import load
from effillm_server.contract.job import Cell
from effillm_server.contract.sweep import Engine, Weights
from effillm_worker.engines.base import LoadRequest, Unsupported

# Before, a crafted file could execute code although only weights were asked for (CVE-2025-32434).
WEIGHTS_ONLY_SINCE = (2, 6)
PICKLED = (".bin", ".pt", ".pth", ".pkl", ".ckpt", ".msgpack", ".h5")
SYNTHETIC_FORMAT = 1
UNKNOWN_MODEL = 3  # exit code of the process that writes synthetic weights


@dataclass(frozen=True)
class Source:
    """What to hand to transformers: a folder or hub id, and the arguments that keep it from going anywhere else."""

    location: str
    options: dict[str, Any] = field(default_factory=dict)
    synthetic: bool = False


def source(request: LoadRequest) -> Source:
    """Where to load the request's model from. Raises Unsupported when the model's files may not be loaded."""
    cell = request.cell
    folder = local_folder(cell.model, request.model_root)
    if cell.weights is Weights.SYNTHETIC:
        if request.architecture is None and folder is None:
            _check_hub(request)
        architecture = request.architecture or _architecture(cell.model, folder, cell.revision)
        made = synthetic(architecture, cell.model, Path(request.cache_dir))
        return Source(str(made), {"local_files_only": True, "use_safetensors": True}, synthetic=True)
    if folder is not None:
        _refuse_adapter(folder, cell.model)
        _refuse_pickled(folder, cell.model, allowed=request.allow_pickled)
        is_pickled = request.allow_pickled and not any(folder.glob("*.safetensors"))
        return Source(str(folder), {"local_files_only": True} | _format(is_pickled=is_pickled))
    _check_hub(request)
    # Where pickled weights are allowed transformers still takes safetensors first.
    options = _format(is_pickled=request.allow_pickled)
    return Source(cell.model, options | ({"revision": cell.revision} if cell.revision else {}))


def downloads(cell: Cell, model_root: str | None) -> bool:
    """Whether a child that loads the cell's model has to ask the hub for files."""
    if cell.engine is not Engine.TRANSFORMERS:
        return False
    if cell.weights is Weights.SYNTHETIC and cell.model in load().models:
        return False
    return model_root is None or not (Path(model_root) / cell.model / "config.json").is_file()


def _check_hub(request: LoadRequest) -> None:
    if not request.allow_hub:
        raise Unsupported(
            f"{request.cell.model} is not among the models that this node loads from the hub (EFFILLM_ALLOW_MODELS), and not a "
            "folder below its model root"
        )


def local_folder(model: str, model_root: str | None) -> Path | None:
    """The model's folder below the model root, None when there is none.

    Raises Unsupported when the folder, or a file in it, lies outside the model root once links are followed.
    """
    if model_root is None:
        return None
    if ".." in Path(model).parts or Path(model).is_absolute():
        raise Unsupported(f"{model!r} is not a folder below the model root: no '..' and no absolute path")
    root = Path(model_root).resolve()
    folder = root / model
    if not (folder / "config.json").is_file():
        return None
    for path in (folder, *folder.rglob("*")):
        if not path.resolve().is_relative_to(root):
            raise Unsupported(f"{path.relative_to(root)} is a link out of the model root: copy the file itself there")
    return folder


def synthetic(architecture: dict[str, Any], model: str, cache_dir: Path) -> Path:
    """Folder of a safetensors checkpoint of this architecture with random weights, written once and shared by processes.

    A process of its own writes it: this one's memory is about to be measured. Raises Unsupported, SyntheticFailed.
    """
    folder = synthetic_folder(architecture, model, cache_dir)
    if not folder.is_dir():
        job = json.dumps({"architecture": architecture, "model": model, "cache_dir": str(cache_dir)})
        done = subprocess.run(
            [sys.executable, "-m", "effillm_worker.synthetic"], input=job, text=True, capture_output=True, check=False
        )
        if done.returncode != 0:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1][:300]
            if done.returncode == UNKNOWN_MODEL:
                raise Unsupported(f"transformers in this runtime loads no causal language model {model}: {last}")
            raise SyntheticFailed(f"writing the synthetic weights of {model} failed: {last}")
    return folder


class SyntheticFailed(Exception):
    """The synthetic checkpoint could not be written."""


def synthetic_folder(architecture: dict[str, Any], model: str, cache_dir: Path) -> Path:
    """Where the synthetic checkpoint of an architecture lives: one folder per exact architecture."""
    text = json.dumps([SYNTHETIC_FORMAT, architecture], sort_keys=True, separators=(",", ":"))
    name = re.sub(r"[^A-Za-z0-9.-]+", "-", model).strip("-.")[:80]
    return cache_dir / "synthetic" / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


@contextmanager
def written_once(folder: Path) -> Iterator[Path | None]:
    """A fresh folder beside `folder` to write into, renamed to it at the end; None when another process has made it.

    Processes wait for each other by a lock file; a reader sees the whole folder or none, and a writer's death leaves
    nothing but rubbish that the next writer removes.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f".{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for rubbish in folder.parent.glob(f".{folder.name}.*.part"):
            shutil.rmtree(rubbish, ignore_errors=True)
        if folder.is_dir():
            yield None
            return
        part = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".part", dir=folder.parent))
        try:
            yield part
            part.chmod(0o755)
            part.rename(folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)


def _format(*, is_pickled: bool) -> dict[str, Any]:
    """Arguments of `from_pretrained` that keep to safetensors, or read pickled weights and nothing else that is pickled."""
    if not is_pickled:
        return {"use_safetensors": True}
    found = tuple(map(int, re.findall(r"\d+", version("torch"))[:2]))
    if found < WEIGHTS_ONLY_SINCE:
        raise Unsupported(
            f"pickled weights are read by torch {'.'.join(map(str, WEIGHTS_ONLY_SINCE))} or newer only, in which weights-only "
            f"loading executes nothing; this runtime has {version('torch')}"
        )
    return {"weights_only": True}


def _refuse_adapter(folder: Path, model: str) -> None:
    if (folder / "adapter_config.json").exists():
        raise Unsupported(
            f"{model} is an adapter, whose base model would be loaded from wherever it says: merge the two and store the result"
        )


def _refuse_pickled(folder: Path, model: str, *, allowed: bool) -> None:
    if allowed or any(folder.glob("*.safetensors")):
        return
    pickled = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLED)
    found = f"found only {', '.join(pickled[:3])}" if pickled else "found no weights"
    raise Unsupported(
        f"{model} has no safetensors weights ({found}): pickled weights can run code, so they are refused unless the operator "
        "names the model in EFFILLM_ALLOW_PICKLED"
    )


def _architecture(model: str, folder: Path | None, revision: str | None) -> dict[str, Any]:
    """The model's own config.json, from its folder or the hub."""
    from huggingface_hub import hf_hub_download

    path = folder / "config.json" if folder is not None else None
    if path is None:
        path = Path(hf_hub_download(model, "config.json", revision=revision, token=os.environ.get("HF_TOKEN")))
    read: dict[str, Any] = json.loads(path.read_text())
    return read
