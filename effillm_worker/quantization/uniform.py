"""The paper's uniform quantization, Q(x) = round((x - min) / (max - min) * (2^b - 1)): the reference other methods stand beside."""

from __future__ import annotations

import time
from typing import Any

from effillm_worker.quantization import base


class Uniform(base.Method):
    """Linear layers as packed codes of b bits with one range per matrix, or per output channel; embeddings and head stay.

    Round to nearest, no calibration: a weight is off by at most half a step. The codes are really stored; each product
    unpacks them first, so it is a reference for memory and quality, not for speed.
    """

    converts = True

    def start(self, device: str, dtype: str) -> None:
        import torch

        from effillm_worker.quantization.codes import UniformLinear

        kind = getattr(torch, dtype)
        layer = UniformLinear(torch.eye(64, dtype=kind), None, self._bits, channel=self._by_channel).to(device)
        with torch.no_grad():
            layer(torch.ones(1, 64, dtype=kind, device=device))

    def convert(self, model: Any, tokenizer: Any, context: base.Conversion) -> dict[str, Any]:
        from effillm_worker.quantization.codes import UniformLinear, linear_layers, replace, weight_of

        begin = time.monotonic()
        for name, layer in linear_layers(model).items():
            new = UniformLinear(weight_of(layer), layer.bias, self._bits, channel=self._by_channel)
            replace(model, name, new.to(layer.weight.device))
        return {"seconds": time.monotonic() - begin}

    def packed(self, module: Any) -> base.Packed | None:
        from effillm_worker.quantization.codes import packed_matrix

        return packed_matrix(module)

    @property
    def _bits(self) -> int:
        return int(self.choices["bits"])

    @property
    def _by_channel(self) -> bool:
        return bool(self.choices.get("channel", False))
