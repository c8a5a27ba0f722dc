"""A model in a local folder: its configuration and its size from the headers of the weight files; no weights are read."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

from effillm_server.errors import BadInput

MAX_HEADER_BYTES = 64 * 2**20
MAX_CONFIG_BYTES = 2**20
_FLOATS = frozenset({"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"})
_BUFFER = re.compile(r"(^|\.)(inv_freq|masked_bias)$")


def find(model: str, root: Path) -> Path | None:
    """The folder of `model` below `root` if it holds a config.json. Raises BadInput when a link leads out of the root."""
    folder = root / model
    config = folder / "config.json"
    if not config.is_file():
        return None
    inside = root.resolve()
    if not config.resolve().is_relative_to(inside):
        raise BadInput(f"model {model!r} leads out of EFFILLM_MODEL_ROOT; copy the folder into it", field="models")
    return folder


def config(folder: Path) -> dict[str, Any]:
    """The parsed config.json. Raises BadInput when it is not a JSON object."""
    path = folder / "config.json"
    try:
        raw = path.read_bytes()[: MAX_CONFIG_BYTES + 1]
        value = json.loads(raw) if len(raw) <= MAX_CONFIG_BYTES else None
    except (OSError, ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise BadInput(f"model {folder.name!r}: its config.json is not a JSON object", field="models")
    return value


def parameters(folder: Path) -> int | None:
    """Floating-point values in the folder's safetensors files, buffers left out; None without such files."""
    total = 0
    for path in sorted(folder.glob("*.safetensors")):
        header = _header(path)
        if header is None or not path.resolve().is_relative_to(folder.resolve()):
            return None
        total += sum(
            math.prod(entry["shape"])
            for name, entry in header.items()
            if name != "__metadata__" and entry.get("dtype") in _FLOATS and not _BUFFER.search(name)
        )
    return total or None


def _header(path: Path) -> dict[str, Any] | None:
    """The JSON header of a safetensors file: eight bytes of length, little endian, then the object."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            value = json.loads(file.read(length)) if length <= MAX_HEADER_BYTES else None
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
