"""Weights stored in the floating-point type they are computed in: fp32, fp16, bf16."""

from __future__ import annotations

from effillm_worker.engines.base import Unsupported
from effillm_worker.quantization import base

DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


class Plain(base.Method):
    """No quantization: the checkpoint's weights, converted to one dtype."""

    def check(self, device: str, dtype: str) -> None:
        stored_in = DTYPES[self.name]
        if dtype != stored_in:
            raise Unsupported(f"{self.name} stores and computes in {stored_in}, the cell asks for {dtype}")
