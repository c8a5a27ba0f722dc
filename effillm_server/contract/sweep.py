"""The sweep definition: what a user submits, as YAML or JSON."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints, model_validator

from effillm_server.contract.base import Contract
from effillm_server.contract.quality import QualityPlan
from effillm_server.contract.quantization import QuantizationChoice, QuantizationFilter

MODEL_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*){0,5}")
AXES = (
    "models", "hardware", "runtime", "engine", "quantization", "workload", "generate_tokens", "batch_size", "sequence_length",
)  # fmt: skip


class Weights(StrEnum):
    PRETRAINED = "pretrained"
    SYNTHETIC = "synthetic"


class Engine(StrEnum):
    TRANSFORMERS = "transformers"
    SIMULATED = "simulated"


class Isolation(StrEnum):
    GROUP = "group"
    CELL = "cell"


class Visibility(StrEnum):
    LAB = "lab"
    PRIVATE = "private"


SYNTHETIC_WORKLOAD = "synthetic"

T = TypeVar("T")


def _distinct(values: tuple[T, ...]) -> tuple[T, ...]:
    seen: set[str] = set()
    for value in values:
        key = repr(value)
        if key in seen:
            raise ValueError(f"{value!r} stands twice; every value of an axis must be distinct")
        seen.add(key)
    return values


def _listed(value: Any) -> Any:
    """A scalar stands for a list of one."""
    return value if isinstance(value, list | tuple) else [value]


Axis = Annotated[
    tuple[T, ...], BeforeValidator(_listed), Field(min_length=1, max_length=10_000), AfterValidator(_distinct)
]

Slug = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9.-]{0,63}$")]
BatchSize = Annotated[int, Field(strict=True, ge=1, le=65_536)]
Tokens = Annotated[int, Field(strict=True, ge=1, le=10_000_000)]


def _model_id(value: str) -> str:
    if ".." in value or len(value) > 200 or MODEL_ID.fullmatch(value) is None:
        raise ValueError(
            f"{value!r} is not a model id: expected a hub id such as facebook/opt-125m or a folder below "
            "EFFILLM_MODEL_ROOT; no URL, no '..'"
        )
    return value


def _revision(value: str) -> str:
    # The hub's cache has a file of this name.
    if ".." in value or value.startswith("/"):
        raise ValueError(f"{value!r} is not a revision: expected a commit, a tag or a branch such as main or refs/pr/1")
    return value


ModelId = Annotated[str, AfterValidator(_model_id)]
Revision = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._/-]{1,100}$"), AfterValidator(_revision)]


class ModelChoice(Contract):
    """One model of the sweep: hub id or folder below the model root, and where its weights come from."""

    id: ModelId
    weights: Weights = Weights.PRETRAINED
    revision: Revision | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_id(cls, value: Any) -> Any:
        return {"id": value} if isinstance(value, str) else value


class Bounds(Contract):
    """At least `min`, at most `max`; a single number means both."""

    min: Annotated[int, Field(strict=True, ge=0, le=10_000)]
    max: Annotated[int, Field(strict=True, ge=0, le=10_000)]

    @model_validator(mode="before")
    @classmethod
    def _from_number(cls, value: Any) -> Any:
        return {"min": value, "max": value} if isinstance(value, int) and not isinstance(value, bool) else value

    @model_validator(mode="after")
    def _ordered(self) -> Bounds:
        if self.min > self.max:
            raise ValueError(f"min {self.min} is above max {self.max}")
        return self


MIN_WARMUP = 3
MIN_ITERATIONS = 5
SECONDS_PER_ITERATION = 0.5


class MeasurementPlan(Contract):
    """How long each cell is measured: warm-up, iterations, when to stop, how often in fresh processes."""

    warmup: Bounds = Bounds(min=3, max=10)
    iterations: Bounds = Bounds(min=10, max=30)
    relative_half_width: Annotated[float, Field(gt=0, lt=1)] = 0.02
    repeats: Annotated[int, Field(strict=True, ge=1, le=100)] = 1
    time_limit_s: Annotated[float, Field(gt=0, le=7 * 86_400)] = 1800.0

    @model_validator(mode="after")
    def _enough(self) -> MeasurementPlan:
        if self.warmup.min < MIN_WARMUP:
            raise ValueError(f"warmup is at least {MIN_WARMUP} iterations, found {self.warmup.min}")
        if self.iterations.min < MIN_ITERATIONS:
            raise ValueError(f"iterations is at least {MIN_ITERATIONS} for any result, found {self.iterations.min}")
        needed = SECONDS_PER_ITERATION * (self.warmup.min + 2 * self.iterations.min)
        if self.time_limit_s < needed:
            raise ValueError(
                f"time_limit_s {self.time_limit_s:g} is too small: {self.warmup.min} warm-up and 2 x {self.iterations.min} measured "
                f"iterations (throughput and first token) need at least {needed:g} s"
            )
        return self


class Exclusion(Contract):
    """Cells to leave out: those that agree with every axis named here; a value or a list of values each."""

    model: Axis[str] | None = None
    weights: Axis[Weights] | None = None
    quantization: Axis[QuantizationFilter] | None = None
    hardware: Axis[str] | None = None
    engine: Axis[Engine] | None = None
    runtime: Axis[str] | None = None
    workload: Axis[str] | None = None
    batch_size: Axis[int] | None = None
    sequence_length: Axis[int] | None = None
    generate_tokens: Axis[int] | None = None

    @model_validator(mode="after")
    def _not_empty(self) -> Exclusion:
        if not self.model_fields_set:
            raise ValueError("an exclusion names at least one axis; an empty one would exclude every cell")
        return self


class SweepDefinition(Contract):
    """A matrix of cells to measure: the product of the axes, less the exclusions."""

    version: Literal[1] = 1
    name: Annotated[
        str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$")
    ]
    models: Axis[ModelChoice]
    hardware: Axis[Slug]
    quantization: Axis[QuantizationChoice]
    batch_size: Axis[BatchSize] = (1,)
    sequence_length: Axis[Tokens] = (128,)
    workload: Axis[Slug] = (SYNTHETIC_WORKLOAD,)
    generate_tokens: Axis[Tokens] = (256,)
    engine: Axis[Engine] = (Engine.TRANSFORMERS,)
    runtime: Axis[Slug] = ("default",)
    measurement: MeasurementPlan = MeasurementPlan()
    exclude: Annotated[tuple[Exclusion, ...], Field(max_length=1000)] = ()
    priority: Annotated[int, Field(strict=True, ge=-100, le=100)] = 0
    visibility: Visibility = Visibility.LAB
    isolation: Isolation = Isolation.GROUP
    quality: QualityPlan | None = None
