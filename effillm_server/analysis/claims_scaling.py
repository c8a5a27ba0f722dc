"""The paper's claims about scaling with model size, batch size and sequence length."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from effillm_server.analysis.claims import (
    CONFIRMED,
    REFUTED,
    UNDECIDED,
    Claim,
    Evidence,
    Study,
    above,
    in_range,
    parameter_in_range,
)
from effillm_server.analysis.forms import linear
from effillm_server.analysis.laws import PAPER_BYTES_PER_PARAMETER
from effillm_server.analysis.statistics import LEVEL, t_quantile
from effillm_server.analysis.words import interval, number, slice_text

MIN_TREND = 3
MEMORY_TOLERANCE = 0.1


def _linear_first_token(study: Study) -> list[Evidence]:
    found = []
    for fit in study.fits:
        if fit["law"] != "ttft-vs-size":
            continue
        curved, p = fit["residual_check"]["curved"], fit["residual_check"]["p"]
        straight = curved is False and not fit["weak"] and fit["r2"] >= 0.9
        verdict = REFUTED if curved else CONFIRMED if straight else UNDECIDED
        text = (
            f"R² = {number(fit['r2'])}, bend p = {number(p, 2)} over {fit['n']} models for {slice_text(fit['slice'])}"
        )
        found.append(_evidence(fit, verdict, text))
    return found


def _memory_coefficient(study: Study) -> list[Evidence]:
    found = []
    for fit in study.fits:
        precision = fit["slice"].get("quantization")
        expected = PAPER_BYTES_PER_PARAMETER.get(str(precision))
        # The paper states this at batch size 1, where the key-value cache is small beside the weights.
        if fit["law"] != "memory-vs-size" or expected is None or fit["slice"].get("batch_size") != 1:
            continue
        value = fit["parameters"]["c"]
        verdict = in_range(value, expected * (1 - MEMORY_TOLERANCE), expected * (1 + MEMORY_TOLERANCE))
        text = f"c = {interval(value)} GB per billion parameters, the paper says {expected:g}, for {slice_text(fit['slice'])}"
        found.append(_evidence(fit, verdict, text))
    return found


def _larger_models_steeper(study: Study) -> list[Evidence]:
    """mu grows with model size: slope of mu on ln size across the models of a slice."""
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = defaultdict(list)
    for fit in study.fits:
        if fit["law"] == "throughput-vs-sequence":
            groups[_without_model(fit["slice"])].append(fit)
    found = []
    for members in groups.values():
        points = [(_size(study, fit["slice"]["model"]), fit["parameters"]["mu"]["value"]) for fit in members]
        trend = _trend([(size, mu) for size, mu in points if size])
        if trend is not None:
            text = f"μ changes by {interval(trend)} per tenfold size over {len(members)} models on {members[0]['slice']['hardware']}"
            found.append(
                _evidence(members[0], above(trend, 0.0), text, [job for fit in members for job in fit["jobs"]])
            )
    return found


def _larger_models_scale_better(study: Study) -> list[Evidence]:
    """eta_b grows with model size: slope of eta on ln size at the largest batch that at least three models share."""
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = defaultdict(list)
    for entry in study.batch_scaling:
        groups[(*_without_model(entry), entry["batch_size"])].append(entry)
    largest: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for key, members in sorted(groups.items(), key=lambda item: int(item[0][-1])):
        if len({entry["model"] for entry in members}) >= MIN_TREND:
            largest[key[:-1]] = members
    found = []
    for members in largest.values():
        trend = _trend([(size, e["eta"]) for e in members if (size := _size(study, e["model"]))])
        if trend is not None:
            first = members[0]
            text = (
                f"η at b = {first['batch_size']} changes by {interval(trend)} per tenfold size over {len(members)} models, "
                f"{first['hardware']}, {first['quantization']}"
            )
            jobs = [job for entry in members for job in entry["jobs"]]
            found.append(Evidence(slice_text(first), first["hardware"], above(trend, 0.0), text, jobs))
    return found


def _sequence_counts_more_than_batch(study: Study) -> list[Evidence]:
    """omega > phi for the same model, precision and device."""
    phis = {_identity(fit["slice"]): fit for fit in study.fits if fit["law"] == "ttft-vs-batch"}
    found = []
    for fit in study.fits:
        partner = phis.get(_identity(fit["slice"]))
        if fit["law"] != "ttft-vs-sequence" or partner is None:
            continue
        omega, phi = fit["parameters"]["omega"], partner["parameters"]["phi"]
        verdict = UNDECIDED
        if _exceeds(omega["low"], phi["high"]):
            verdict = CONFIRMED
        elif _exceeds(phi["low"], omega["high"]):
            verdict = REFUTED
        text = f"ω = {interval(omega)} beside φ = {interval(phi)} for {slice_text(_named(fit['slice']))}"
        found.append(_evidence(fit, verdict, text, [*fit["jobs"], *partner["jobs"]]))
    return found


def _batch_helps_less_on_long_sequences(study: Study) -> list[Evidence]:
    found = []
    for fit in study.joint_fits:
        slope = fit["parameters"]["slope_per_doubling"]
        negative = {"low": _minus(slope["high"]), "high": _minus(slope["low"])}
        text = f"β changes by {interval(slope)} per doubling of s for {slice_text(fit['slice'])}"
        found.append(_evidence(fit, above(negative, 0.0), text))
    return found


def _batch_one_answers_first(study: Study) -> list[Evidence]:
    found = []
    for fit in study.fits:
        if fit["law"] == "ttft-vs-batch":
            phi = fit["parameters"]["phi"]
            text = f"first-token time grows as b^φ, φ = {interval(phi)}, for {slice_text(fit['slice'])}"
            found.append(_evidence(fit, above(phi, 0.0), text))
    return found


CLAIMS: tuple[Claim, ...] = (
    Claim("delta", "Throughput falls with model size as a power δ between 0.4 and 0.6", "impact of model size on throughput",
          "four models at one batch size and sequence length",
          parameter_in_range("throughput-vs-size", "delta", "δ", 0.4, 0.6)),
    Claim("sublinear-batch", "Throughput grows less than proportionally with batch size", "batch size scaling",
          "four batch sizes of one model", parameter_in_range("throughput-vs-batch", "beta", "β", -math.inf, 1.0)),
    Claim("batch-and-sequence", "Larger batches help less on longer sequences", "joint impact of batch size and sequence length",
          "two sequence lengths with several batch sizes each", _batch_helps_less_on_long_sequences),
    Claim("mu", "Throughput falls with sequence length as a power μ between 0.2 and 0.5", "sequence length impact",
          "four sequence lengths of one model", parameter_in_range("throughput-vs-sequence", "mu", "μ", 0.2, 0.5)),
    Claim("mu-by-size", "μ is larger for larger models", "sequence length impact",
          "four sequence lengths for each of three models", _larger_models_steeper),
    Claim("ttft-linear", "Time to first token grows linearly with model size", "model size impact on latency",
          "six models at one batch size and sequence length", _linear_first_token),
    Claim("phi", "Time to first token grows with batch size as a power φ between 0.2 and 0.5", "batch size impact on latency",
          "four batch sizes of one model", parameter_in_range("ttft-vs-batch", "phi", "φ", 0.2, 0.5)),
    Claim("omega", "Time to first token grows with sequence length as a power ω between 0.5 and 1.0", "sequence length effect",
          "four sequence lengths of one model", parameter_in_range("ttft-vs-sequence", "omega", "ω", 0.5, 1.0)),
    Claim("omega-above-phi", "First-token time is more sensitive to sequence length than to batch size (ω > φ)",
          "sequence length effect on latency", "four batch sizes and four sequence lengths of one model",
          _sequence_counts_more_than_batch),
    Claim("memory-per-parameter", "Memory grows by 4, 2, 1, 0.5 GB per billion parameters at FP32, FP16, INT8, INT4",
          "model size and memory requirements", "four models at one precision, batch size 1", _memory_coefficient),
    Claim("eta-by-size", "Larger models scale better with batch size", "batch size scaling",
          "batch 1 and a larger one for each of three models", _larger_models_scale_better),
    Claim("batch-one-latency", "Batch size 1 gives the shortest time to first token", "recommendations",
          "four batch sizes of one model", _batch_one_answers_first),
)  # fmt: skip


def _trend(points: Sequence[tuple[float, float]]) -> dict[str, float] | None:
    """Slope of y per tenfold x with its interval; None below three points."""
    if len({x for x, _ in points}) < MIN_TREND:
        return None
    x, y = np.log10([p[0] for p in points]), np.array([p[1] for p in points])
    best, covariance, _ = linear(np.column_stack([np.ones_like(x), x]), y, np.ones_like(x))
    half = t_quantile(LEVEL, len(points) - 2) * math.sqrt(float(covariance[1, 1]))
    return {"value": float(best[1]), "low": float(best[1]) - half, "high": float(best[1]) + half}


def _size(study: Study, model: str) -> int | None:
    return study.facts.parameters.get(model)


def _without_model(axes: Mapping[str, Any]) -> tuple[Any, ...]:
    names = ("quantization", "engine", "sequence_length", "workload", "generate_tokens", "hardware", "runtime")
    extra = axes.get("batch_size") if "eta" not in axes else None
    return (*(axes.get(name) for name in names), extra)


def _identity(axes: Mapping[str, Any]) -> tuple[Any, ...]:
    names = (
        "model",
        "weights",
        "quantization",
        "dtype",
        "engine",
        "workload",
        "generate_tokens",
        "hardware",
        "runtime",
    )
    return tuple(axes.get(name) for name in names)


def _named(axes: Mapping[str, Any]) -> dict[str, Any]:
    return {name: axes[name] for name in ("model", "quantization", "hardware") if name in axes}


def _exceeds(low: float | None, high: float | None) -> bool:
    return low is not None and high is not None and low > high


def _minus(value: float | None) -> float | None:
    return None if value is None else -value


def _evidence(fit: Mapping[str, Any], verdict: str, text: str, jobs: list[int] | None = None) -> Evidence:
    return Evidence(
        where=slice_text(fit["slice"]),
        hardware=str(fit["slice"].get("hardware")),
        verdict=verdict,
        text=text,
        jobs=list(fit["jobs"]) if jobs is None else jobs,
    )
