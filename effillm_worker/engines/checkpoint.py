"""Facts about the files a model is loaded from, and the argument names that differ between versions of transformers."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from effillm_server.contract.job import Cell
from effillm_worker.weights import Source

WEIGHT_FILES = ("*.safetensors", "*.bin", "*.pt", "*.pth")


def dtype_argument(dtype: Any) -> dict[str, Any]:
    """The dtype as `from_pretrained` of this runtime's transformers calls it: it was `torch_dtype` before version 5."""
    import transformers

    return {"dtype" if int(transformers.__version__.split(".")[0]) >= 5 else "torch_dtype": dtype}


def folder_of(source: Source) -> Path | None:
    """Where the files of a source lie: its folder, or the hub's snapshot in the cache; None when nothing was downloaded."""
    folder = Path(source.location)
    if folder.is_dir():
        return folder
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(source.location, "config.json", revision=source.options.get("revision"))
    return Path(found).parent if isinstance(found, str) else None


def disk_bytes(source: Source) -> int | None:
    """Bytes of the weight files a source is loaded from, of the first kind there is."""
    folder = folder_of(source)
    for pattern in WEIGHT_FILES if folder is not None else ():
        sizes = [path.stat().st_size for path in sorted(folder.glob(pattern))] if folder is not None else []
        if sizes:
            return sum(sizes)
    return None


def identity(cell: Cell, source: Source) -> str:
    """A name for exactly these weights: what is made of them can be kept under it."""
    if source.synthetic:
        return Path(source.location).name
    folder = Path(source.location)
    files: list[Any] = []
    if folder.is_dir():
        stats = [(path.name, path.stat()) for path in sorted(folder.iterdir()) if path.is_file()]
        files = [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]
    text = json.dumps([cell.model, cell.revision, files], separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
