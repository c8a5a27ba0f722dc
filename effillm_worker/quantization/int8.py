"""LLM.int8() by bitsandbytes: weights in 8 bits with a scale per row, outlier columns computed in the cell's dtype."""

from __future__ import annotations

import logging
from typing import Any

from effillm_worker.quantization import base
from effillm_worker.quantization.stopwatch import timed


class Int8(base.Method):
    """Linear layers as `Linear8bitLt`; embeddings, norms and the output head stay in the compute dtype.

    Inputs with a value above `threshold` are multiplied unquantized; 0 multiplies everything in 8 bits.
    """

    def check(self, device: str, dtype: str) -> None:
        base.require(("bitsandbytes", "accelerate"), self.name)

    def start(self, device: str, dtype: str) -> None:
        import bitsandbytes
        import torch

        # It logs a line for every product of every layer: thousands a second, inside the measurement.
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
        layer = bitsandbytes.nn.Linear8bitLt(64, 64, has_fp16_weights=False).to(device)
        with torch.no_grad():
            layer(torch.ones(1, 64, dtype=getattr(torch, dtype), device=device))

    def options(self, dtype: str) -> dict[str, Any]:
        from transformers import BitsAndBytesConfig

        threshold = float(self.choices.get("threshold", 6.0))
        return {"quantization_config": BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=threshold)}

    def load(self, auto: Any, location: str, arguments: dict[str, Any]) -> Any:
        from bitsandbytes.nn import Int8Params

        with timed(Int8Params, "_quantize") as self._spent:
            return super().load(auto, location, arguments)

    def evidence(self, model: Any) -> dict[str, Any]:
        return {"seconds": self._spent.seconds}

    def stored(self, parameter: Any) -> base.Stored:
        matrix = base.plain(parameter)
        scales = getattr(parameter, "SCB", None)
        return matrix if scales is None else base.Stored(matrix.weights, matrix.bytes + base.plain(scales).bytes)

    def multiplied_in(self, model: Any, dtype: str) -> str | None:
        return "int8"

    def is_quantized(self, module: Any) -> bool:
        return type(module).__name__ == "Linear8bitLt"
