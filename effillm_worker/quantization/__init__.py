"""Quantization methods by name: how each loads through transformers, and how its stored weights are counted."""

from __future__ import annotations

import importlib
from importlib.metadata import entry_points

from effillm_worker.engines.base import Unsupported
from effillm_worker.quantization.base import Method

BUILTIN = {
    "fp32": "effillm_worker.quantization.plain:FP32",
    "fp16": "effillm_worker.quantization.plain:FP16",
    "bf16": "effillm_worker.quantization.plain:BF16",
    "int8": "effillm_worker.quantization.int8:INT8",
    "int4": "effillm_worker.quantization.int4:INT4",
    "gptq": "effillm_worker.quantization.gptq:GPTQ",
}


def method(name: str) -> Method:
    """The method by registry name or entry point of the group `effillm.quantization`. Raises Unsupported for others."""
    if name in BUILTIN:
        module, _, attribute = BUILTIN[name].partition(":")
        found: Method = getattr(importlib.import_module(module), attribute)
        return found
    for point in entry_points(group="effillm.quantization", name=name):
        extra: Method = point.load()
        return extra
    raise Unsupported(f"no quantization {name!r} in this runtime; there are {', '.join(BUILTIN)}")
