"""What the routes of the analysis take and answer."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from effillm_server.api import examples, insight_examples
from effillm_server.contract.units import parse_bytes, parse_seconds

Entries = list[dict[str, Any]]


class Aim(StrEnum):
    """What is to be best."""

    THROUGHPUT = "throughput"
    LATENCY = "latency"
    MULTI_USER = "multi-user"
    COST = "cost"
    ENERGY = "energy"


def _example(value: dict[str, Any]) -> ConfigDict:
    return ConfigDict(json_schema_extra={"examples": [value]})


class AnalysisView(BaseModel):
    """Everything the rows of a sweep say. Every entry names the jobs it rests on."""

    model_config = _example(insight_examples.ANALYSIS)

    summary: dict[str, Any] = Field(description="rows by state and verdict, how many were used; `remark` when none was")
    noise_floor: dict[str, Any] = Field(description="how much two runs of a cell differ on this machine by themselves")
    fits: Entries = Field(description="scaling laws with parameters, intervals, goodness of fit and residual check")
    batch_exponent_by_sequence: Entries
    batch_scaling: Entries = Field(description="eta_b = T(b) / (b T(1))")
    best_batch: Entries = Field(description="b_opt by the paper's definition, and the largest b keeping 80 % of T(1)")
    quantization: Entries = Field(
        description="speed, memory and quality against the same cell unquantized; `shares` of the device reached and of time in "
        "dequantization, both sides', and the `reason` for the difference where they tell"
    )
    cost: Entries = Field(description="dollars per million tokens, prices with source and date")
    cliffs: Entries = Field(description="steps of latency beyond noise")
    variance: Entries = Field(description="how much of the spread lies between processes")
    frontier: Entries = Field(description="the largest batch and sequence that ran")
    pareto: Entries = Field(description="configurations that no other beats in both throughput and memory")
    claims: Entries = Field(description="the paper's claims on these rows: confirmed, refuted or undecided")
    findings: Entries = Field(description="what stands out, in sentences")


class FigureEntry(BaseModel):
    """A figure by name, and what it needs where these rows cannot fill it."""

    name: str
    number: int = Field(description="the paper's number")
    title: str
    can_be_drawn: bool
    needs: str | None


class FiguresView(BaseModel):
    """All figures of the paper in its order."""

    model_config = _example(insight_examples.FIGURES)

    items: list[FigureEntry]


class SideView(BaseModel):
    """One side of a comparison."""

    sweep: str
    name: str
    filters: dict[str, list[str | int]]


class ComparisonView(BaseModel):
    """B against A in every cell that both have; a ratio above 1 means that B has more of the metric."""

    model_config = _example(insight_examples.COMPARISON)

    a: SideView
    b: SideView
    metric: str
    margin: float = Field(description="differences within this share count as the same")
    alpha: float
    across: dict[str, list[list[Any]]] = Field(description="axes that differ on purpose, with the values of each side")
    held_equal: list[str]
    cells: Entries = Field(description="ratio with 95 % interval, test, adjusted p and verdict of each cell")
    counts: dict[str, int] = Field(description="cells by verdict")
    geometric_mean_ratio: float | None
    only_in_a: int
    only_in_b: int
    without_metric: int
    comparability: dict[str, Any] = Field(description="what differs between the fingerprints, and whether it matters")
    remarks: list[str]
    fail_if: str | None
    tripped: Entries = Field(description="cells that meet `fail_if`")


def _quantity(parse: Callable[[str], float], example: str, noun: str) -> Any:
    """A positive number of SI units, or a text with one of ours."""

    def read(value: Any) -> Any:
        try:
            return parse(value) if isinstance(value, str) else value
        except OverflowError:
            raise ValueError(f"{value!r} is too large a {noun}") from None

    schema = {"anyOf": [{"type": "number", "exclusiveMinimum": 0}, {"type": "string"}], "examples": [example]}
    return (BeforeValidator(read), Field(gt=0, allow_inf_nan=False), WithJsonSchema(schema))


Bytes = Annotated[float, *_quantity(parse_bytes, "16GB", "size")]
Seconds = Annotated[float, *_quantity(parse_seconds, "200ms", "duration")]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class RecommendationRequest(BaseModel):
    """What is wanted of a configuration, among those a sweep has measured. A limit left out limits nothing."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [insight_examples.RECOMMENDATION_REQUEST]})

    sweep: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$", examples=[examples.SWEEP_ID])]
    aim: Aim = Aim.THROUGHPUT
    max_memory: Bytes | None = Field(None, description="peak memory: bytes, or `16GB`")
    max_ttft: Seconds | None = Field(None, description="time to first token: seconds, or `200ms`")
    max_quality_loss: Annotated[float, Field(ge=0, le=1)] | None = Field(None, description="share of quality lost")
    max_purchase_usd: Positive | None = Field(None, description="price of the device")
    max_hourly_usd: Positive | None = Field(None, description="price of the device per hour")
    min_throughput: Positive | None = Field(None, description="tokens per second")
    noise_floor: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="standard deviation of the ratio of two runs of a cell, as `effillm doctor` finds it"
    )
    filters: list[Annotated[str, Field(max_length=2000)]] = Field(
        [], max_length=32, description="only rows with these values, `axis=value` or `axis=value,value`"
    )


class RecommendationView(BaseModel):
    """The best measured configuration, how sure that is, what would change it, and the rows it rests on."""

    model_config = _example(insight_examples.RECOMMENDATION)

    aim: Aim
    aim_said: str
    simulated: bool
    considered: int
    allowed: int = Field(description="configurations that surely keep all limits")
    recommended: dict[str, Any] | None = Field(description="null when no configuration keeps all limits")
    is_tie: bool
    ties: Entries = Field(description="configurations that the measurements cannot tell from the best")
    next: dict[str, Any] | None = Field(description="the next best, by how much, and whether that is significant")
    pareto: Entries
    what_would_change_it: Entries = Field(description="for each limit, what would win without it")
    sentence: str
    rests_on: list[int] = Field(description="jobs")
    note: str
