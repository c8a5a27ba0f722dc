"""Weights quantized by torchao while they load: 8 bits with inputs quantized as they come, or 4 bits for the weights only."""

from __future__ import annotations

from typing import Any

from effillm_worker.engines.base import Unsupported
from effillm_worker.quantization import base
from effillm_worker.quantization.stopwatch import timed


class Torchao(base.Method):
    """Linear layers with torchao's tensors in them; embeddings and the output head stay."""

    _device = "cpu"

    def check(self, device: str, dtype: str) -> None:
        self._device = device
        base.require(("torchao", "accelerate"), self.name, extra="torchao")

    def start(self, device: str, dtype: str) -> None:
        """Quantize a small layer and multiply by it. Raises Unsupported with torchao's reason where it does not run."""
        import torch
        from torchao.quantization import quantize_

        layer = torch.nn.Sequential(torch.nn.Linear(256, 256, bias=False, dtype=getattr(torch, dtype), device=device))
        try:
            quantize_(layer, self.configuration())
            with torch.no_grad():
                layer(torch.ones(1, 256, dtype=getattr(torch, dtype), device=device))
        except (AssertionError, ImportError, NotImplementedError, RuntimeError, ValueError) as error:
            sentence = " ".join(str(error).split())[:200] or type(error).__name__
            raise Unsupported(f"torchao's {self.name} does not run on this {device} in {dtype}: {sentence}") from error

    def options(self, dtype: str) -> dict[str, Any]:
        from transformers import TorchAoConfig

        return {"quantization_config": TorchAoConfig(self.configuration())}

    def load(self, auto: Any, location: str, arguments: dict[str, Any]) -> Any:
        import torchao.quantization

        with timed(torchao.quantization, "quantize_") as self._spent:
            return super().load(auto, location, arguments)

    def evidence(self, model: Any) -> dict[str, Any]:
        return {"seconds": self._spent.seconds}

    def configuration(self) -> Any:
        """torchao's own description of the quantization."""
        raise NotImplementedError

    def stored(self, parameter: Any) -> base.Stored:
        flatten = getattr(parameter, "__tensor_flatten__", None)
        if flatten is None:
            return base.plain(parameter)
        names, _ = flatten()
        return base.Stored(parameter.numel(), sum(base.plain(getattr(parameter, name)).bytes for name in names))

    def kernel(self, module: Any) -> str:
        # The module stays an ordinary linear layer; its weight's class decides what is called.
        return type(module.weight).__name__

    def is_quantized(self, module: Any) -> bool:
        return hasattr(module, "in_features") and type(module.weight).__module__.startswith("torchao")


class Int8Dynamic(Torchao):
    """Weights in 8 bits with a scale per row; inputs are brought to 8 bits too, at every product anew."""

    def configuration(self) -> Any:
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig

        return Int8DynamicActivationInt8WeightConfig()

    def multiplied_in(self, model: Any, dtype: str) -> str | None:
        return "int8"


class Int4WeightOnly(Torchao):
    """Weights in 4 bits with a scale and a zero point per group of a row."""

    def configuration(self) -> Any:
        group_size = int(self.choices.get("group_size", 128))
        if self._device == "cpu":
            # The layout of the stable configuration needs a GPU library; this one has torch's own kernel for processors.
            from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig

            return PrototypeInt4WeightOnlyConfig(group_size=group_size, set_inductor_config=False)
        from torchao.quantization import Int4WeightOnlyConfig

        return Int4WeightOnlyConfig(group_size=group_size, set_inductor_config=False)

    def multiplied_in(self, model: Any, dtype: str) -> str | None:
        return None
