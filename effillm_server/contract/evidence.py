"""What a row says of its quantized weights: counted and timed while the model was loaded."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from effillm_server.contract.base import Contract


class Quantized(Contract):
    """Stored in `LoadedModel.details["quantization"]` of every child that loads through transformers.

    `theoretical_bits` leaves scales out, and is a mean over all linear layers where a plan gave each its own; what is really stored
    is `LoadedModel.bits_per_weight`. `seconds` is the time the quantization itself took, once, wherever its product then came from
    a cache; None where weights are only cast. `disk_bytes` are the weight files the model was loaded from. `layers` counts
    quantized modules by the class that runs them, `modules` by name with numbers as `*`; `kept` are the linear layers that were left
    as they are.
    """

    method: str
    options: dict[str, Any] = Field(default_factory=dict)
    theoretical_bits: float | None = None
    quantized_weights: int = 0
    seconds: float | None = None
    disk_bytes: int | None = None
    layers: dict[str, int] = Field(default_factory=dict)
    modules: dict[str, int] = Field(default_factory=dict)
    kept: dict[str, int] = Field(default_factory=dict)
    facts: dict[str, Any] = Field(default_factory=dict)
