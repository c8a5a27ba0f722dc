"""How far from the device's own measured ceiling a configuration runs: MBU and MFU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from effillm_server.analysis.series import Series
from effillm_server.contract.job import Cell
from effillm_server.contract.quantization import method_of
from effillm_server.records import ResultRecord

FLOP_PER_WEIGHT = 2


def utilization(result: ResultRecord, measured: Series, ceiling: Mapping[str, Any] | None) -> dict[str, float | None]:
    """Share of the measured bandwidth and matrix rate reached, by the medians of the counted iterations.

    MBU of decode = (weights read per step + key-value cache) / step time / copy bandwidth; of a table that is only looked
    up, such as an embedding that is not the output head too, a step reads a few rows, so it does not count. MFU = 2 x
    weights that are multiplied x tokens / time / matrix rate of the type multiplied in (8 bits for int8, bfloat16 for int4 on
    processors that have its products); the output head is applied to the last prompt token only. Attention's own products are left
    out, so MFU is a lower bound. None for a model whose engine did not say which weights are multiplied, or in which type.
    """
    measurement = result.measurement or {}
    child = result.child or measurement.get("child") or {}
    model = child.get("loaded_model") or {}
    # The ceiling recorded with the measurement first: the device may have changed since.
    limits = (measurement.get("details") or {}).get("ceiling") or ceiling or {}
    cell = result.job.cell
    bandwidth = limits.get("copy_bytes_s")
    step_s = _median(measured.metrics["tpot_s"])
    prefill_s = _median(measured.metrics["ttft_in_run_s"])
    parts, batch = model.get("details") or {}, cell.batch_size
    # Kernels multiply in a type of their own, whatever the dtype around them: the rate of another type is no ceiling.
    multiplied_in = parts["multiplied_in"] if "multiplied_in" in parts else _multiplied_in(cell)
    rate = (limits.get("matmul_flop_s") or {}).get(multiplied_in)
    multiplied, head = parts.get("multiplied_weights"), parts.get("head_weights")
    if multiplied is None or head is None:
        return {"mbu_decode": None, "mfu_prefill": None, "mfu_decode": None}
    prompt = measured.prompt_tokens_per_batch
    read = model["weight_bytes"] - parts["looked_up_bytes"]
    moved = read + _cache_bytes(measurement, cell.generate_tokens, prompt, batch)
    prefill = prompt and FLOP_PER_WEIGHT * ((multiplied - head) * prompt + head * batch)
    return {
        "mbu_decode": _share(moved, step_s, bandwidth),
        "mfu_prefill": _share(prefill, prefill_s, rate),
        "mfu_decode": _share(FLOP_PER_WEIGHT * multiplied * batch, step_s, rate),
    }


def _multiplied_in(cell: Cell) -> str | None:
    """What is sure of a result that was stored before the worker said it."""
    method = method_of(cell.quantization)
    return {"int8": "int8", "int4": None, "gptq": None, "int8-dynamic": None, "int4-weight-only": None}.get(
        method, cell.dtype
    )


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
