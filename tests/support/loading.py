"""One tiny model loaded by the engine under a label, and as transformers loads it by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from effillm_server.contract.evidence import Quantized
from effillm_server.contract.outcome import LoadedModel
from effillm_worker import weights
from effillm_worker.engines.base import LoadRequest
from effillm_worker.engines.transformers import TransformersEngine
from tests.support.child import TINY_NEOX
from tests.support.fake_engine import cell

WIDTH, INNER, WORDS, LAYERS = 128, 512, 512, 2
ARCHITECTURE = TINY_NEOX | {"hidden_size": WIDTH, "intermediate_size": INNER, "vocab_size": WORDS}
IDS = torch.arange(3, 60).unsqueeze(0)
# Matrices of a layer: (rows, columns) = (out, in).
MATRICES = [(3 * WIDTH, WIDTH), (WIDTH, WIDTH), (INNER, WIDTH), (WIDTH, INNER)] * LAYERS
LINEAR = sum(rows * columns for rows, columns in MATRICES)
ROWS = sum(rows for rows, _ in MATRICES)
BIASES, NORMS = ROWS, 2 * WIDTH * (2 * LAYERS + 1)
# Bytes of everything that no method quantizes: two tables, biases and norms in single precision.
REST = 4 * (2 * WORDS * WIDTH + BIASES + NORMS)


def folder(cache: Path) -> Path:
    """The checkpoint both sides load."""
    return weights.synthetic(ARCHITECTURE, "lab/tiny", cache)


def load(cache: Path, label: str, **changes: Any) -> tuple[Any, LoadedModel, Quantized]:
    """The model as the engine loads it, what it says of it, and its evidence."""
    request = LoadRequest(
        cell=cell(quantization=label, **changes), threads=1, device="cpu", cache_dir=str(cache), architecture=ARCHITECTURE
    )  # fmt: skip
    engine = TransformersEngine()
    engine.start(request)
    found = engine.load(request)
    return engine._model, found, Quantized.model_validate(found.details["quantization"])


def own_path(cache: Path, dtype: torch.dtype = torch.float32, **options: Any) -> torch.Tensor:
    """Logits of the same checkpoint as transformers loads it by itself."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder(cache), dtype=dtype, device_map={"": "cpu"}, **options).eval()
    return logits(model)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(IDS).logits
    return found
