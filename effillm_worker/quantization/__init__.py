"""Quantization methods by name: how each loads through transformers, and how its stored weights are counted."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from importlib.metadata import entry_points

from effillm_server.contract.quantization import PLUGINS, Value, method_of, options_of
from effillm_worker.engines.base import Unsupported
from effillm_worker.quantization.base import Method

# Classes or functions called with the label and its options.
BUILTIN = {
    "fp32": "effillm_worker.quantization.plain:Plain",
    "fp16": "effillm_worker.quantization.plain:Plain",
    "bf16": "effillm_worker.quantization.plain:Plain",
    "int8": "effillm_worker.quantization.int8:Int8",
    "int4": "effillm_worker.quantization.int4:Int4",
    "gptq": "effillm_worker.quantization.gptq:Gptq",
    "uniform": "effillm_worker.quantization.uniform:Uniform",
    "dynamic": "effillm_worker.quantization.dynamic:Dynamic",
    "qat": "effillm_worker.quantization.qat:Qat",
    "int8-dynamic": "effillm_worker.quantization.torchao:Int8Dynamic",
    "int4-weight-only": "effillm_worker.quantization.torchao:Int4WeightOnly",
}


def method(label: str, options: Mapping[str, Value] | None = None) -> Method:
    """The method of a label, made with its options; by registry name or entry point of the group `effillm.quantization`.

    Raises Unsupported for others.
    """
    name = method_of(label)
    if name in BUILTIN:
        module, _, attribute = BUILTIN[name].partition(":")
        try:
            made = getattr(importlib.import_module(module), attribute)
            found: Method = made(label, options_of(label) if options is None else options)
        except ValueError as error:
            raise Unsupported(str(error)) from error
        return found
    for point in entry_points(group=PLUGINS, name=name):
        extra: Method = point.load()(label, options or {})
        return extra
    raise Unsupported(f"no quantization {label!r} in this runtime; there are {', '.join(BUILTIN)}")
