"""How far from the device's own measured ceiling a configuration runs: MBU and MFU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from effillm_server.analysis.series import Series
from effillm_server.records import ResultRecord

FLOP_PER_PARAMETER = 2


def utilization(result: ResultRecord, measured: Series, ceiling: Mapping[str, Any] | None) -> dict[str, float | None]:
    """Share of the measured bandwidth and matrix rate reached, by the medians of the counted iterations.

    MBU of decode = (weights + key-value cache read per step) / step time / copy bandwidth. MFU = 2 x parameters x tokens /
    time / matrix rate of the dtype computed in; attention's own products are left out, so it is a lower bound.
    """
    measurement = result.measurement or {}
    child = result.child or measurement.get("child") or {}
    model = child.get("loaded_model") or {}
    # The ceiling recorded with the measurement first: the device may have changed since.
    limits = (measurement.get("details") or {}).get("ceiling") or ceiling or {}
    cell = result.job.cell
    rate = (limits.get("matmul_flop_s") or {}).get(cell.dtype)
    bandwidth = limits.get("copy_bytes_s")
    step_s = _median(measured.metrics["tpot_s"])
    prefill_s = _median(measured.metrics["ttft_in_run_s"])
    parameters, weights = model.get("parameters"), model.get("weight_bytes")
    prompt = measured.prompt_tokens_per_batch
    moved = (
        None if weights is None else weights + _cache_bytes(measurement, cell.generate_tokens, prompt, cell.batch_size)
    )
    return {
        "mbu_decode": _share(moved, step_s, bandwidth),
        "mfu_prefill": _share(parameters and prompt and FLOP_PER_PARAMETER * parameters * prompt, prefill_s, rate),
        "mfu_decode": _share(parameters and FLOP_PER_PARAMETER * parameters * cell.batch_size, step_s, rate),
    }


def _cache_bytes(measurement: Mapping[str, Any], generated: int, prompt: float | None, batch_size: int) -> float:
    """Key-value cache a mean decode step reads: the prediction for the full length, at half of the generated tokens."""
    account = (measurement.get("memory") or {}).get("account") or {}
    full = account.get("kv_cache_predicted_bytes")
    if not full or not prompt:
        return 0.0
    per_sequence = prompt / batch_size
    return float(full) * (per_sequence + generated / 2) / (per_sequence + generated)


def _share(amount: float | None, seconds: float | None, rate: float | None) -> float | None:
    return amount / seconds / rate if amount and seconds and rate else None


def _median(values: list[float]) -> float | None:
    if not values:
        return None
    ordered, middle = sorted(values), len(values) // 2
    return ordered[middle] if len(values) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
