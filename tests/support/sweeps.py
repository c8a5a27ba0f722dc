"""Rows of an invented sweep that follows known laws, with known noise, for tests that need many cells at once."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from effillm_server.analysis.rows import COLUMNS, METRICS, SUFFIXES

GB = 1e9
SIZES = {
    "EleutherAI/pythia-70m": 70_426_624, "facebook/opt-125m": 125_239_296, "EleutherAI/pythia-160m": 162_322_944,
    "facebook/opt-350m": 331_196_416, "EleutherAI/pythia-410m": 405_334_016, "EleutherAI/pythia-1b": 1_011_781_632,
    "EleutherAI/pythia-1.4b": 1_414_647_808,
}  # fmt: skip
BYTES = {"fp32": 4.0, "fp16": 2.0, "bf16": 2.0, "int8": 1.0, "int4": 0.5, "gptq": 0.5}
SPEED = {"fp32": 0.8, "fp16": 1.0, "bf16": 1.0, "int8": 0.97, "int4": 0.8, "gptq": 0.9}
HARDWARE = {"cpu": 1.0, "t4": 3.0, "rtx-4090": 12.0, "a100": 15.0}


@dataclass(frozen=True)
class Laws:
    """The truth behind the rows."""

    delta: float = 0.5
    beta: float = 0.8
    beta_slope: float = 0.0
    mu: float = 0.3
    phi: float = 0.4
    omega: float = 0.8
    kappa_s: float = 0.005
    overhead_gb: float = 0.4


@dataclass(frozen=True)
class Noise:
    """Relative standard deviations: between processes, and between iterations of one."""

    between: float = 0.0
    within: float = 0.01
    iterations: int = 10


@dataclass(frozen=True)
class Grid:
    models: Sequence[str] = ("facebook/opt-125m",)
    hardware: Sequence[str] = ("cpu",)
    quantization: Sequence[str] = ("fp32",)
    batch_size: Sequence[int] = (1,)
    sequence_length: Sequence[int] = (128,)
    repeats: int = 1
    fixed: dict[str, Any] = field(default_factory=dict)


def invent(
    grid: Grid, laws: Laws = Laws(), noise: Noise = Noise(), seed: int = 0, sweep: str = "s-invented"
) -> list[dict[str, Any]]:
    """Rows of every cell of `grid`, `repeats` processes each."""
    rng = np.random.default_rng(seed)
    axes = itertools.product(
        grid.models, grid.hardware, grid.quantization, grid.batch_size, grid.sequence_length, range(1, grid.repeats + 1)
    )
    first_job = 1 + seed * 1_000_000
    return [
        row(dict(zip(("model", "hardware", "quantization", "batch_size", "sequence_length", "repeat"), point, strict=True))
            | {"sweep": sweep, "job": first_job + number, "ordinal": number} | grid.fixed, laws, noise, rng)
        for number, point in enumerate(axes)
    ]  # fmt: skip


def row(axes: dict[str, Any], laws: Laws, noise: Noise, rng: np.random.Generator) -> dict[str, Any]:
    """One measured row that obeys `laws`."""
    made = dict.fromkeys(COLUMNS) | DEFAULTS | axes
    size = SIZES[made["model"]] / GB
    b, s, n = made["batch_size"], made["sequence_length"], made["generate_tokens"]
    power, precision = HARDWARE[made["hardware"]], SPEED[made["quantization"]]
    beta = laws.beta + laws.beta_slope * math.log2(s / 128)
    throughput = 60 * power * precision * size**-laws.delta * b**beta * (s / 128) ** -laws.mu
    ttft = (laws.kappa_s + 0.2 * size * (s / 128) ** laws.omega) / power * b**laws.phi
    gap = b / throughput
    luck = math.exp(noise.between * rng.standard_normal())
    values = {
        "throughput_tok_s": throughput * luck, "ttft_s": ttft / luck, "ttft_in_run_s": 1.02 * ttft / luck,
        "tpot_s": gap / luck, "decode_tok_s": 1.05 * throughput * luck, "prefill_tok_s": b * s / ttft * luck,
        "per_instance_tok_s": throughput * luck / b, "e2e_s": n * gap / luck,
    }  # fmt: skip
    series = {m: list(values[m] * np.exp(noise.within * rng.standard_normal(noise.iterations))) for m in METRICS}
    for metric in METRICS:
        made |= _summary(metric, np.array(series[metric]))
    weights = SIZES[made["model"]] * BYTES[made["quantization"]]
    peak = round(laws.overhead_gb * GB + weights + 2e5 * b * s * size)
    kind = "ram" if made["hardware"] == "cpu" else "vram"
    made |= {f"{kind}_peak_bytes": peak, "weight_bytes": round(weights), "parameters": SIZES[made["model"]]}
    made["memory_efficiency_tok_s_per_gb"] = made["throughput_tok_s_mean"] / (peak / GB)
    made |= {
        "iterations": noise.iterations,
        "ttft_iterations": noise.iterations,
        "warmup_iterations": 3,
        "excluded_outliers": 0,
    }
    return made | {"series": series}


DEFAULTS: dict[str, Any] = {
    "sweep": "s-invented", "state": "measured", "verdict": "valid", "simulated": False, "weights": "synthetic",
    "dtype": "float32", "engine": "transformers", "workload": "synthetic", "generate_tokens": 16, "runtime": "default",
    "device": "box-0", "fingerprint": "f0", "repeat": 1, "verdict_reasons": [], "job": 1, "ordinal": 0,
}  # fmt: skip


def infeasible(axes: dict[str, Any], reason: str) -> dict[str, Any]:
    return dict.fromkeys(COLUMNS) | DEFAULTS | {"state": "infeasible", "reason": reason, "verdict": None} | axes


def without_series(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{column: value for column, value in made.items() if column in COLUMNS} for made in rows]


def _summary(metric: str, sample: np.ndarray) -> dict[str, float]:
    mean, std = float(sample.mean()), float(sample.std(ddof=1)) if sample.size > 1 else 0.0
    half = 2.262 * std / math.sqrt(sample.size)
    values = (mean, float(np.median(sample)), std, mean - half, mean + half)
    return {f"{metric}_{suffix}": value for suffix, value in zip(SUFFIXES, values, strict=True)}
