"""What a row says of how its weights are stored: bits in theory and as counted, what quantizing took, which layers by which kernel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

COLUMN_TYPES: dict[str, type] = {
    "theoretical_bits": float, "memory_reduction_theory": float, "memory_reduction_weights": float, "quantize_s": float,
    "disk_bytes": int, "quantized_weights": int, "quantized_layers": int, "quantized_by": str,
}  # fmt: skip
# A weight that is not quantized is stored in the type that is computed in.
DTYPE_BITS = {"float32": 32, "float16": 16, "bfloat16": 16}


def columns(model: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """The row's columns of a loaded model's record as JSON; empty where its engine did not say how weights are stored.

    Both reductions are against the model stored in the type it is computed in: half precision on a GPU, fp32 on a processor.
    `theory` is 1 - bits / bits of the quantized layers alone, `weights` is counted from all loaded tensors, scales and what was
    left unquantized included.
    """
    evidence = (model.get("details") or {}).get("quantization")
    if not evidence:
        return {}
    full = DTYPE_BITS.get(dtype)
    bits, stored = evidence.get("theoretical_bits"), model.get("bits_per_weight")
    layers = evidence.get("layers") or {}
    return {
        "theoretical_bits": bits,
        "memory_reduction_theory": None if bits is None or full is None else 1 - bits / full,
        "memory_reduction_weights": None if stored is None or full is None else 1 - stored / full,
        "quantize_s": evidence.get("seconds"),
        "disk_bytes": evidence.get("disk_bytes"),
        "quantized_weights": evidence.get("quantized_weights"),
        "quantized_layers": sum(layers.values()),
        "quantized_by": ", ".join(f"{kernel} x {count}" for kernel, count in sorted(layers.items())) or None,
    }
