"""NF4 or FP4 by bitsandbytes: two weights a byte with a scale per block of 64, multiplied in the cell's dtype."""

from __future__ import annotations

import logging
import math
from typing import Any

from effillm_worker.quantization import base
from effillm_worker.quantization.stopwatch import timed


class Int4(base.Method):
    """Linear layers as `Linear4bit`; embeddings, norms and the output head stay in the compute dtype.

    `double` quantizes the scales too, to 8 bits with a scale per 256 of them.
    """

    def check(self, device: str, dtype: str) -> None:
        base.require(("bitsandbytes", "accelerate"), self.name)

    def start(self, device: str, dtype: str) -> None:
        import bitsandbytes
        import torch

        # It logs a line for every product of every layer: thousands a second, inside the measurement.
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
        layer = bitsandbytes.nn.Linear4bit(
            64, 64, quant_type=self._type, compress_statistics=self._is_double, compute_dtype=getattr(torch, dtype)
        ).to(device)
        with torch.no_grad():
            layer(torch.ones(1, 64, dtype=getattr(torch, dtype), device=device))

    def options(self, dtype: str) -> dict[str, Any]:
        from transformers import BitsAndBytesConfig

        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=self._type,
            bnb_4bit_use_double_quant=self._is_double,
            bnb_4bit_compute_dtype=dtype,
        )
        return {"quantization_config": config}

    def load(self, auto: Any, location: str, arguments: dict[str, Any]) -> Any:
        from bitsandbytes.nn import Params4bit

        with timed(Params4bit, "_quantize") as self._spent:
            return super().load(auto, location, arguments)

    def evidence(self, model: Any) -> dict[str, Any]:
        return {"seconds": self._spent.seconds}

    def stored(self, parameter: Any) -> base.Stored:
        packed = base.plain(parameter)
        state = getattr(parameter, "quant_state", None)
        if state is None:
            return packed
        return base.Stored(math.prod(state.shape), packed.bytes + _scales(state))

    def multiplied_in(self, model: Any, dtype: str) -> str | None:
        # On a processor with products of bfloat16, bitsandbytes brings everything to it, whatever its compute dtype says.
        layers = [module for module in model.modules() if self.is_quantized(module)]
        on_processor = any(module.weight.device.type == "cpu" for module in layers)
        fused = on_processor and any(getattr(module, "support_avx512bf16_for_cpu", False) for module in layers)
        return "bfloat16" if fused else dtype

    def is_quantized(self, module: Any) -> bool:
        return type(module).__name__ == "Linear4bit"

    @property
    def _type(self) -> str:
        return str(self.choices.get("type", "nf4"))

    @property
    def _is_double(self) -> bool:
        return bool(self.choices.get("double", False))


def _scales(state: Any) -> int:
    """Bytes of scales and code book; with double quantization those of the scales' own scales too."""
    own = base.plain(state.absmax).bytes + base.plain(state.code).bytes
    return own + (_scales(state.state2) + base.plain(state.offset).bytes if state.nested else 0)
