"""A cell of the matrix and the lease under which one device measures it."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated

from pydantic import Field, StringConstraints

from effillm_server.contract.base import CONTRACT_VERSION, Contract
from effillm_server.contract.quality import QualityPlan
from effillm_server.contract.quantization import Value, options_of
from effillm_server.contract.sweep import Engine, Isolation, MeasurementPlan, Weights

# Not checked against the methods known here: a device may run a method that an installed package adds.
Label = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][A-Za-z0-9._/@-]{0,199}$")]


class Cell(Contract):
    """One point of the sweep matrix. `sequence_length` is None for text workloads, which bring their own lengths.

    `quantization` is the canonical label of `contract.quantization`.
    """

    model: str
    weights: Weights
    revision: str | None = None
    quantization: Label
    dtype: str
    engine: Engine
    runtime: str
    hardware: str
    batch_size: Annotated[int, Field(ge=1)]
    sequence_length: Annotated[int, Field(ge=1)] | None
    workload: str
    generate_tokens: Annotated[int, Field(ge=1)]
    repeat: Annotated[int, Field(ge=1)] = 1

    @property
    def quantization_options(self) -> dict[str, Value]:
        """Options of the quantization, defaults included; its label holds them all. Raises ValueError for what is no label."""
        return options_of(self.quantization)

    @property
    def size(self) -> int:
        """Batch x sequence tokens: the order in which a load group is measured."""
        return self.batch_size * (self.sequence_length or 0)

    def load_group(self, sweep_id: str) -> str:
        """Key of the load group: cells that one loaded model can serve, one sweep, one hardware class, one repeat."""
        return _digest(
            [sweep_id, self.hardware, self.runtime, self.engine, self.model, self.weights, self.revision,
             self.quantization, self.dtype, self.repeat]
        )[:16]  # fmt: skip

    def digest(self, plan: MeasurementPlan) -> str:
        """SHA-256 over everything that defines what is measured and how; equal cells of different sweeps agree."""
        return _digest([CONTRACT_VERSION, self.model_dump(mode="json"), plan.model_dump(mode="json")])


class Lease(Contract):
    """The right to measure one job on one device until the fence moves on."""

    job_id: int
    sweep_id: str
    fence: int
    device_id: str
    attempt: int
    cell: Cell
    plan: MeasurementPlan
    load_group: str
    isolation: Isolation = Isolation.GROUP
    fresh_child: bool = False
    quality: QualityPlan | None = None
    ttl_s: Annotated[float, Field(gt=0, allow_inf_nan=False)]


def _digest(value: object) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()
