"""LLM.int8() by bitsandbytes: weights in 8 bits with a scale per row, outlier columns computed in the cell's dtype."""

from __future__ import annotations

import logging
from typing import Any

from effillm_worker.quantization import base


class Int8:
    """Linear layers as `Linear8bitLt`; embeddings, norms and the output head stay in the compute dtype."""

    name = "int8"

    def check(self, device: str, dtype: str) -> None:
        base.require(("bitsandbytes", "accelerate"), "int8")

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

        return {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)}

    def stored(self, parameter: Any) -> base.Stored:
        matrix = base.plain(parameter)
        scales = getattr(parameter, "SCB", None)
        return matrix if scales is None else base.Stored(matrix.weights, matrix.bytes + base.plain(scales).bytes)


INT8 = Int8()
