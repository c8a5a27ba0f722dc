"""Uniform codes: a matrix as whole numbers of b bits with a smallest value and a step, packed without a bit to spare."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from effillm_worker.quantization.base import Packed


def quantize(
    weight: torch.Tensor, bits: int, *, channel: bool = False
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(codes uint8 [rows, columns], smallest value, step) by Q(x) = round((x - min) / (max - min) * (2^b - 1)).

    Range over the whole matrix, [1, 1], or over each row (output channel), [rows, 1]. A constant range has step 0 and codes 0.
    """
    exact = weight.detach().to(torch.float32)
    low = exact.amin(dim=1, keepdim=True) if channel else exact.amin().reshape(1, 1)
    high = exact.amax(dim=1, keepdim=True) if channel else exact.amax().reshape(1, 1)
    step = (high - low) / (2**bits - 1)
    codes = torch.where(step > 0, (exact - low) / torch.where(step > 0, step, 1), 0).round_()
    return codes.clamp_(0, 2**bits - 1).to(torch.uint8), low, step


def dequantize(codes: torch.Tensor, low: torch.Tensor, step: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The values the codes stand for; computed in float32, then rounded to `dtype`."""
    return torch.addcmul(low, codes.to(torch.float32), step).to(dtype)


def pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Codes as bytes, one behind the other, the lowest bit first; ceil(n * bits / 8) bytes."""
    flat = codes.flatten()
    if bits == 8:
        return flat.clone()
    flat = nn.functional.pad(flat, (0, -flat.numel() % 8))
    # Eight codes take exactly `bits` bytes: each group is one row, and each bit of it has one place.
    lanes = flat.reshape(-1, 8)
    packed = torch.zeros(lanes.shape[0], bits, dtype=torch.uint8)
    packed = packed.to(codes.device)
    for lane in range(8):
        for bit in range(bits):
            byte, place = divmod(lane * bits + bit, 8)
            packed[:, byte] |= ((lanes[:, lane] >> bit) & 1) << place
    return packed.flatten()[: math.ceil(codes.numel() * bits / 8)].clone()


def unpack(packed: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """The first `count` codes of what `pack` made, uint8."""
    if bits == 8:
        return packed[:count]
    if bits in (1, 2, 4):
        mask = 2**bits - 1
        parts = [(packed >> place) & mask for place in range(0, 8, bits)]
        return torch.stack(parts, dim=-1).flatten()[:count]
    rows = nn.functional.pad(packed, (0, -packed.numel() % bits)).reshape(-1, bits).to(torch.int32)
    lanes = []
    for lane in range(8):
        byte, place = divmod(lane * bits, 8)
        value = rows[:, byte] >> place
        if place + bits > 8:
            value = value | (rows[:, byte + 1] << (8 - place))
        lanes.append(value & (2**bits - 1))
    return torch.stack(lanes, dim=-1).to(torch.uint8).flatten()[:count]


class UniformLinear(nn.Module):
    """A linear layer whose matrix is stored as packed uniform codes and unpacked for every product: small, not fast."""

    packed: torch.Tensor
    low: torch.Tensor
    step: torch.Tensor

    def __init__(self, weight: torch.Tensor, bias: Any, bits: int, *, channel: bool = False) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.bits = bits
        self.dtype = weight.dtype
        codes, low, step = quantize(weight, bits, channel=channel)
        self.register_buffer("packed", pack(codes, bits))
        self.register_buffer("low", low)
        self.register_buffer("step", step)
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=False)

    def matrix(self) -> torch.Tensor:
        """The matrix the codes stand for, shape [out, in]."""
        shape = (self.out_features, self.in_features)
        codes = unpack(self.packed, self.bits, self.out_features * self.in_features).reshape(shape)
        return dequantize(codes, self.low, self.step, self.dtype)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(inputs, self.matrix(), self.bias)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bits={self.bits}"


def packed_matrix(module: Any) -> Packed | None:
    """The tensors of a UniformLinear, None for any other module."""
    if not isinstance(module, UniformLinear):
        return None
    return Packed(module.out_features * module.in_features, (module.packed, module.low, module.step))


def linear_layers(model: Any) -> dict[str, Any]:
    """The modules a method may quantize, by name: every linear layer but the output head, as bitsandbytes and GPTQ choose them."""
    head = model.get_output_embeddings()
    return {
        name: module
        for name, module in model.named_modules()
        if (isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D") and module is not head
    }


def weight_of(module: Any) -> torch.Tensor:
    """The matrix of a linear layer, [out, in]; GPT-2's `Conv1D` keeps it the other way round."""
    matrix: torch.Tensor = module.weight
    return matrix.T if type(module).__name__ == "Conv1D" else matrix


def replace(model: Any, name: str, module: nn.Module) -> None:
    """Put `module` in the place of the submodule `name`."""
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent) if parent else model, last, module)
