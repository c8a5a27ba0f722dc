"""What a stored quality record says: perplexity with its interval, and what quantization cost of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from effillm_server.analysis import statistics

COLUMN_TYPES: dict[str, type] = {
    "perplexity": float, "perplexity_low": float, "perplexity_high": float, "token_agreement": float, "mean_kl": float,
    "quality_loss": float, "quality_loss_ci95_low": float, "quality_loss_ci95_high": float, "quality_tokens": int,
    "quality_text": str, "dequantization_share_prefill": float, "dequantization_share_decode": float, "quality_note": str,
    "tasks": list,
}  # fmt: skip


def columns(quality: Mapping[str, Any] | None) -> dict[str, Any]:
    """The row's columns of a `Quality` record as JSON; empty without one.

    `quality_loss` is the relative rise of perplexity over the unquantized model's on the same tokens, below 0 where it fell. Its
    interval is of the paired differences of blocks of tokens: what makes a block hard is hard for both.
    """
    if quality is None:
        return {}
    losses, agreement = quality.get("losses"), quality.get("agreement")
    shares = quality.get("shares") or {}
    found: dict[str, Any] = {
        "quality_text": quality.get("text"),
        "quality_note": "; ".join(quality.get("notes") or ()) or None,
        "dequantization_share_prefill": shares.get("prefill_dequantization"),
        "dequantization_share_decode": shares.get("decode_dequantization"),
        "tasks": [_score(task) for task in quality.get("tasks") or ()] or None,
    }
    if losses is not None:
        found["quality_tokens"] = sum(losses["tokens"])
        found |= _named("perplexity", ("", "_low", "_high"), _exponential(losses["nll"], losses["tokens"], math.exp))
    if agreement is not None:
        found["token_agreement"] = agreement["agreeing"] / agreement["positions"]
        found["mean_kl"] = agreement["mean_kl"]
        if losses is not None and agreement["losses"]["tokens"] == losses["tokens"]:
            rises = np.subtract(losses["nll"], agreement["losses"]["nll"]).tolist()
            suffixes = ("", "_ci95_low", "_ci95_high")
            found |= _named("quality_loss", suffixes, _exponential(rises, losses["tokens"], math.expm1))
    return found


def _score(task: Mapping[str, Any]) -> str:
    """`lambada_openai acc 0.38 ± 0.049`: the standard error behind the score, where the harness has one."""
    error = task.get("stderr")
    return f"{task['task']} {task['metric']} {task['value']:.4g}{'' if error is None else f' ± {error:.2g}'}"


def _exponential(means: list[float], tokens: list[int], of: Any) -> tuple[float | None, float | None, float | None]:
    """`of` the mean over all tokens and of the ends of its 95 % interval, by Student's t over the blocks."""
    centre = float(np.average(means, weights=tokens))
    interval = statistics.mean_interval(np.array(means)) if len(means) > 1 else None
    if interval is None:
        return _finite(of, centre), None, None
    # Blocks differ by a token at most; the interval is laid around the mean over tokens.
    reach = (interval.high - interval.low) / 2
    return _finite(of, centre), _finite(of, centre - reach), _finite(of, centre + reach)


def _finite(of: Any, value: float) -> float | None:
    try:
        return float(of(value))
    except OverflowError:
        return None


def _named(name: str, suffixes: tuple[str, ...], values: tuple[float | None, ...]) -> dict[str, float | None]:
    return {f"{name}{suffix}": value for suffix, value in zip(suffixes, values, strict=True)}
