"""A second reading of GPTQ's checkpoint format: codes, zero points and scales out of 32-bit words, by none of the libraries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint by name."""
    from safetensors.torch import load_file

    found: dict[str, torch.Tensor] = {}
    for path in folder.glob("*.safetensors"):
        found |= load_file(str(path))
    return found


def layers_of(tensors: dict[str, torch.Tensor]) -> list[str]:
    """Names of the quantized layers."""
    return sorted(name.removesuffix(".qweight") for name in tensors if name.endswith(".qweight"))


def codes(tensors: dict[str, torch.Tensor], layer: str, bits: int) -> torch.Tensor:
    """The layer's codes, [in, out]."""
    return _numbers(tensors[f"{layer}.qweight"], bits, across=0)


def dequantized(
    tensors: dict[str, torch.Tensor], layer: str, bits: int, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """The matrix the layer's codes stand for, [out, in], multiplied out in `dtype`."""
    zeros = (_numbers(tensors[f"{layer}.qzeros"], bits, across=1) + 1) & (2**bits - 1)  # stored less one
    scales, group = tensors[f"{layer}.scales"].to(dtype), tensors[f"{layer}.g_idx"].long()
    return ((codes(tensors, layer, bits) - zeros[group]) * scales[group]).T


def nearest(weight: torch.Tensor, bits: int, group: int) -> torch.Tensor:
    """The matrix rounded to nearest at as many bits, symmetric, a scale per group of a row."""
    rows = weight.reshape(weight.shape[0], -1, group)
    scale = 2 * rows.abs().amax(-1, keepdim=True) / (2**bits - 1)
    middle = 2 ** (bits - 1)
    rounded = torch.clamp(torch.round(rows / scale) + middle, 0, 2**bits - 1) - middle
    return (rounded * scale).reshape(weight.shape)


def output_errors(model: Any, ids: list[int], tensors: dict[str, torch.Tensor], bits: int, group: int) -> Any:
    """Of each layer: relative error of its output on the text by the checkpoint, and by rounding to nearest."""
    layers = {n: m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and f"{n}.qweight" in tensors}
    inputs: dict[str, torch.Tensor] = {}
    for name, layer in layers.items():
        layer.register_forward_hook(lambda m, i, o, n=name: inputs.update({n: i[0].flatten(0, 1)}))
    with torch.no_grad():
        model(torch.tensor(ids).reshape(-1, 128))
        return {
            name: [
                float(((found - layer.weight) @ inputs[name].T).norm() / (layer.weight @ inputs[name].T).norm())
                for found in (dequantized(tensors, name, bits), nearest(layer.weight, bits, group))
            ]
            for name, layer in layers.items()
        }


def _numbers(packed: torch.Tensor, bits: int, across: int) -> torch.Tensor:
    """Codes of `bits` bits out of 32-bit words, packed along the dimension `across`."""
    words = packed.to(torch.int64) & 0xFFFFFFFF
    words = words if across == 0 else words.T
    lanes = ((words.unsqueeze(1) >> torch.arange(32).reshape(1, 32, 1)) & 1).reshape(-1, words.shape[1])
    found = (lanes.reshape(-1, bits, words.shape[1]) * (2 ** torch.arange(bits)).reshape(1, bits, 1)).sum(1)
    return found if across == 0 else found.T
