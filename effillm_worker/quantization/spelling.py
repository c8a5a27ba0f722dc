"""Names of tensors in a checkpoint's files, and giving them back the names other libraries know them by."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

INDEX = "model.safetensors.index.json"


def tensors_of(folder: Path) -> dict[str, tuple[int, ...]]:
    """Shape by name of every tensor in a folder's safetensors files, from their headers alone."""
    found: dict[str, tuple[int, ...]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            header: dict[str, Any] = json.loads(stream.read(length))
        found |= {name: tuple(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}
    return found


def respelled(made: Mapping[str, tuple[int, ...]], source: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    """New name by old for tensors that `source` spells otherwise, where their shape leaves no doubt which they are.

    transformers 5 calls GPT-NeoX's output head `lm_head`, published checkpoints and earlier versions `embed_out`.
    """
    replaced = {name.rpartition(".")[0] for name in made if name.endswith(".qweight")}
    strange = {
        name: shape for name, shape in made.items() if name not in source and name.rpartition(".")[0] not in replaced
    }
    absent = {
        name: shape for name, shape in source.items() if name not in made and name.rpartition(".")[0] not in replaced
    }
    found = {}
    for name, shape in strange.items():
        alike = [other for other, of in absent.items() if of == shape]
        rivals = [other for other, of in strange.items() if of == shape]
        if len(alike) == len(rivals) == 1:
            found[name] = alike[0]
    return found


def rename(folder: Path, names: Mapping[str, str]) -> None:
    """Write the folder's files anew with tensors renamed."""
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    if not names:
        return
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(str(path), framework="pt") as opened:
            metadata = opened.metadata()
        tensors = {names.get(name, name): tensor for name, tensor in load_file(str(path)).items()}
        save_file(tensors, str(path), metadata=metadata)
    index = folder / INDEX
    if index.is_file():
        read = json.loads(index.read_text())
        read["weight_map"] = {names.get(name, name): file for name, file in read["weight_map"].items()}
        index.write_text(json.dumps(read))


def missing(folder: Path, wanted: Iterable[str], tied: Iterable[str]) -> list[str]:
    """Which of the wanted tensors no file of the folder has, tied ones left out."""
    return sorted(set(wanted) - set(tensors_of(folder)) - set(tied))
