"""Weights stored in the floating-point type they are computed in: fp32, fp16, bf16."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from effillm_worker.engines.base import Unsupported
from effillm_worker.quantization import base


@dataclass(frozen=True)
class Plain:
    """No quantization: the checkpoint's weights, converted to one dtype."""

    name: str
    dtype: str

    def check(self, device: str, dtype: str) -> None:
        if dtype != self.dtype:
            raise Unsupported(f"{self.name} stores and computes in {self.dtype}, the cell asks for {dtype}")

    def start(self, device: str, dtype: str) -> None:
        """Nothing beyond the framework's own kernels."""

    def options(self, dtype: str) -> dict[str, Any]:
        return {}

    def stored(self, parameter: Any) -> base.Stored:
        return base.plain(parameter)


FP32 = Plain("fp32", "float32")
FP16 = Plain("fp16", "float16")
BF16 = Plain("bf16", "bfloat16")
