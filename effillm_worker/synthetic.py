"""Writes one synthetic checkpoint: the architecture's exact tensors with random values. Run as a process of its own."""

from __future__ import annotations

import itertools
import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch

from effillm_worker.weights import UNKNOWN_MODEL, synthetic_folder, written_once

SEED = 20_240_229
STANDARD_DEVIATION = 0.02
BLOCK = 2**22
SHARD_BYTES = 4 * 10**9
NOT_SHAPE = ("model_type", "auto_map", "custom_pipelines", "quantization_config")
CODES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


def main() -> int:
    """Write the checkpoint that the JSON object on standard input describes; UNKNOWN_MODEL when transformers knows none."""
    job = json.load(sys.stdin)
    try:
        skeleton(job["architecture"])
    except ValueError as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return UNKNOWN_MODEL
    write(job["architecture"], job["model"], Path(job["cache_dir"]))
    return 0


def write(architecture: dict[str, Any], model: str, cache_dir: Path) -> Path:
    """The folder of the architecture's synthetic checkpoint, written unless it is there."""
    folder = synthetic_folder(architecture, model, cache_dir)
    with written_once(folder) as part:
        if part is not None:
            _write_into(part, architecture)
    return folder


def skeleton(architecture: dict[str, Any]) -> Any:
    """The model on the meta device: every tensor's name and shape, no memory. Raises ValueError for an unknown model type."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(str(architecture.get("model_type")), **_plain(architecture))
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=False)


def _plain(architecture: dict[str, Any]) -> dict[str, Any]:
    """The architecture without its type and without anything that names code to run."""
    return {key: value for key, value in architecture.items() if key not in NOT_SHAPE}


def _write_into(folder: Path, architecture: dict[str, Any]) -> None:
    model = skeleton(architecture)
    named = architecture.get("dtype") or architecture.get("torch_dtype") or "float16"
    dtype = getattr(torch, str(named))
    # Tied matrices are one parameter under two names; the checkpoint holds it once, as published ones do.
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    shards = list(_shards(shapes, dtype.itemsize))
    files = [f"model-{index:05d}-of-{len(shards):05d}.safetensors" for index in range(1, len(shards) + 1)]
    block = _block(dtype)
    for file, names in zip(files, shards, strict=True):
        with (folder / file).open("wb") as stream:
            _write_shard(stream, {name: shapes[name] for name in names}, dtype, block)
    weight_map = {name: file for file, names in zip(files, shards, strict=True) for name in names}
    total = sum(_size(shape) for shape in shapes.values()) * dtype.itemsize
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    model.config.architectures = [type(model).__name__]
    (folder / "config.json").write_text(json.dumps(model.config.to_dict() | {"dtype": str(named)}, default=str))


def _shards(shapes: dict[str, tuple[int, ...]], itemsize: int) -> Iterator[list[str]]:
    shard: list[str] = []
    size = 0
    for name, shape in shapes.items():
        if shard and size + _size(shape) * itemsize > SHARD_BYTES:
            yield shard
            shard, size = [], 0
        shard.append(name)
        size += _size(shape) * itemsize
    yield shard


def _write_shard(stream: BinaryIO, shapes: dict[str, tuple[int, ...]], dtype: torch.dtype, block: torch.Tensor) -> None:
    """One safetensors file, streamed: a header of names and offsets, then the tensors' bytes one behind the other."""
    ends = list(itertools.accumulate(_size(shape) * dtype.itemsize for shape in shapes.values()))
    header = {
        name: {"dtype": CODES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
        for (name, shape), begin, end in zip(shapes.items(), [0, *ends], ends, strict=False)
    }
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    text += b" " * (-len(text) % 8)
    stream.write(struct.pack("<Q", len(text)) + text)
    for position, (name, shape) in enumerate(shapes.items()):
        for piece in _values(name, shape, dtype, block, position):
            stream.write(piece.contiguous().view(torch.uint8).numpy().data)


def _values(
    name: str, shape: tuple[int, ...], dtype: torch.dtype, block: torch.Tensor, position: int
) -> Iterator[torch.Tensor]:
    """The flat values of one tensor: scales of norms are 1, vectors of offsets 0, matrices normal with deviation 0.02.

    Matrices repeat one random block from a place of their own: as fast as the disk, and as good for time and memory.
    """
    left = _size(shape)
    if len(shape) < 2:
        value = 0.0 if name.endswith("bias") else 1.0
        yield torch.full((left,), value, dtype=dtype)
        return
    place = position * 1_000_003 % BLOCK
    while left:
        take = min(left, BLOCK - place)
        yield block[place : place + take]
        left, place = left - take, 0


def _block(dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(SEED)
    return (torch.randn(BLOCK, generator=generator) * STANDARD_DEVIATION).to(dtype)


def _size(shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel()


if __name__ == "__main__":
    sys.exit(main())
