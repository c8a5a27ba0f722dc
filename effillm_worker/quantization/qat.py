"""Quantization-aware training: a short fine-tuning under simulated quantization, then real codes."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path
from typing import Any

from effillm_worker.engines.base import Unsupported
from effillm_worker.quality.text import Text, calibration, encode
from effillm_worker.quantization import base
from effillm_worker.weights import written_once

FORMAT = 1
MOST_TOKENS = 65_536
MIN_TOKENS = 512
MATRICES = "matrices.safetensors"
ABOUT = "training.json"


class Qat(base.Method):
    """Each linear layer as packed uniform codes of b bits, a range per output channel, its matrix trained for that beforehand.

    The trained matrices are kept in the cache: repeats and other cells do not train again.
    """

    converts = True

    def start(self, device: str, dtype: str) -> None:
        import torch

        from effillm_worker.quantization.codes import UniformLinear

        kind = getattr(torch, dtype)
        layer = UniformLinear(torch.eye(64, dtype=kind), None, self._bits, channel=True).to(device)
        with torch.no_grad():
            layer(torch.ones(1, 64, dtype=kind, device=device))

    def convert(self, model: Any, tokenizer: Any, context: base.Conversion) -> dict[str, Any]:
        from safetensors.torch import load_file

        from effillm_worker.quantization.codes import UniformLinear, linear_layers, replace, weight_of

        text = calibration(_text(self.choices), context.model_root)
        folder = self._trained(model, text, context)
        about = json.loads((folder / ABOUT).read_text())
        matrices = load_file(str(folder / MATRICES), device=context.device)
        begin = time.monotonic()
        for name, layer in linear_layers(model).items():
            trained = matrices[name].to(weight_of(layer).dtype)
            replace(model, name, UniformLinear(trained, layer.bias, self._bits, channel=True).to(context.device))
        return {"seconds": about.pop("seconds") + time.monotonic() - begin, "facts": {"training": about}}

    def packed(self, module: Any) -> base.Packed | None:
        from effillm_worker.quantization.codes import packed_matrix

        return packed_matrix(module)

    def _trained(self, model: Any, text: Text, context: base.Conversion) -> Path:
        """Folder of the trained matrices, trained now if they are not there yet. Raises Unsupported, also when it diverges."""
        from safetensors.torch import save_file

        from effillm_worker.quantization.training import Recipe, train

        recipe = Recipe(self._bits, int(self.choices["steps"]), float(self.choices["learning_rate"]))
        parts = [FORMAT, context.identity, context.device, context.dtype, text.digest, recipe.described]
        folder = context.cache_dir / "qat" / hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]
        with written_once(folder) as part:
            if part is not None:
                ids = encode(context.encode, text, MOST_TOKENS)
                if len(ids) < MIN_TOKENS:
                    raise Unsupported(
                        f"the training text {text.name!r} has {len(ids)} tokens, qat needs {MIN_TOKENS}: use a longer text"
                    )
                begin = time.monotonic()
                matrices, about = train(model, ids, recipe, context.longest, context.tick)
                save_file(matrices, str(part / MATRICES))
                said = {"text": text.name, "digest": text.digest, "tokens": len(ids), **recipe.described, **about}
                (part / ABOUT).write_text(json.dumps(said | {"seconds": time.monotonic() - begin}))
        return folder

    @property
    def _bits(self) -> int:
        return int(self.choices["bits"])


def _text(choices: Any) -> str | None:
    named = choices.get("text")
    return None if named is None else str(named)
