"""The flat result row: one dict per job, the same names in CSV, JSON, Parquet, API and analysis."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from effillm_server.analysis import quality, statistics, stored
from effillm_server.analysis.series import Series, series
from effillm_server.analysis.utilization import utilization
from effillm_server.contract.sweep import Engine
from effillm_server.contract.units import GB
from effillm_server.records import ResultRecord

METRICS = (
    "throughput_tok_s", "ttft_s", "ttft_in_run_s", "tpot_s", "decode_tok_s", "prefill_tok_s", "per_instance_tok_s", "e2e_s",
)  # fmt: skip
SUFFIXES = ("mean", "median", "std", "ci95_low", "ci95_high")
STAGES = ("baseline", "loaded", "peak", "steady", "released")
AXES = (
    "model", "weights", "quantization", "dtype", "engine", "batch_size", "sequence_length", "workload", "generate_tokens",
    "hardware", "runtime",
)  # fmt: skip

# Of two rows together, so `row` leaves them empty: `partners.beside` fills them where the partner is at hand.
PARTNER_TYPES: dict[str, type] = {
    "unquantized_partner": str, "quantization_efficiency": float, "quantization_efficiency_ci95_low": float,
    "quantization_efficiency_ci95_high": float, "memory_reduction_measured": float, "quantization_reason": str,
}  # fmt: skip
COLUMN_TYPES: dict[str, type] = {
    "sweep": str, "job": int, "state": str, "reason": str, "verdict": str, "simulated": bool,
    "model": str, "weights": str, "quantization": str, "dtype": str, "engine": str,
    "batch_size": int, "sequence_length": int, "workload": str, "generate_tokens": int,
    "hardware": str, "device": str, "fingerprint": str, "runtime": str, "repeat": int,
    **{f"{metric}_{suffix}": float for metric in METRICS for suffix in SUFFIXES},
    **{f"itl_s_p{level}": float for level in statistics.PERCENTILES},
    **{f"ram_{stage}_bytes": int for stage in STAGES},
    **{f"vram_{stage}_bytes": int for stage in STAGES},
    "memory_efficiency_tok_s_per_gb": float, "load_s": float, "iterations": int, "warmup_iterations": int,
    # Everything below stands behind the columns that other tools already read by position.
    "excluded_outliers": int, "ttft_iterations": int, "itl_samples": int,
    **{f"ttft_s_p{level}": float for level in statistics.PERCENTILES},
    **{f"{metric}_median_ci95_{side}": float for metric in METRICS for side in ("low", "high")},
    "throughput_autocorrelation": float,
    "ram_peak_prefill_bytes": int, "ram_peak_decode_bytes": int, "vram_peak_prefill_bytes": int,
    "vram_peak_decode_bytes": int, "vram_peak_reserved_bytes": int, "vram_peak_process_bytes": int, "ram_source": str,
    "parameters": int, "weight_bytes": int, "bits_per_weight": float,
    "mbu_decode": float, "mfu_prefill": float, "mfu_decode": float,
    "energy_j": float, "energy_per_token_j": float, "energy_source": str,
    "processor_sockets": int, "prompt_tokens_min": int, "prompt_tokens_mean": float, "prompt_tokens_max": int,
    "stop_reason": str, "revision": str, "ordinal": int, "implied_by": int, "message": str, "verdict_reasons": list,
    **quality.COLUMN_TYPES,
    **stored.COLUMN_TYPES,
    **PARTNER_TYPES,
}  # fmt: skip
COLUMNS: tuple[str, ...] = tuple(COLUMN_TYPES)


def row(result: ResultRecord, ceiling: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The flat row of a job, every key of COLUMNS, None where there is nothing; statistics recomputed from the samples.

    `ceiling` is the device's measured ceiling, for MBU and MFU. The columns PARTNER_TYPES are None: they are of two rows.
    """
    measured = series(result)
    values = dict.fromkeys(COLUMNS) | _identity(result)
    if result.measurement is not None:
        values |= _statistics(measured)
        values |= _memory(result)
        values |= _evidence(result, measured, ceiling)
        values |= _memory_efficiency(values)
    return values


def row_with_series(result: ResultRecord, ceiling: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """`row` plus what comparisons rest on and exports leave out.

    `series`: metric -> one value per counted iteration; `fingerprint_detail`: the fingerprint itself.
    """
    detail = (result.measurement or {}).get("fingerprint")
    return row(result, ceiling) | {"series": series(result).metrics, "fingerprint_detail": detail}


def _identity(result: ResultRecord) -> dict[str, Any]:
    job, cell, measurement = result.job, result.job.cell, result.measurement
    simulated = cell.engine is Engine.SIMULATED if measurement is None else bool(measurement.get("simulated"))
    return {
        "sweep": job.sweep_id,
        "job": job.id,
        "state": str(job.state),
        "reason": job.reason,
        "message": job.message,
        "verdict": job.verdict if measurement is None else measurement.get("verdict"),
        "verdict_reasons": [] if measurement is None else list(measurement.get("reasons") or ()),
        "simulated": simulated,
        **{axis: getattr(cell, axis) for axis in ("model", "dtype", "batch_size", "sequence_length", "workload")},
        **{axis: str(getattr(cell, axis)) for axis in ("weights", "quantization", "engine", "hardware", "runtime")},
        "generate_tokens": cell.generate_tokens,
        "device": result.device_id or job.device_id,
        "fingerprint": result.fingerprint_digest,
        "repeat": cell.repeat,
        "revision": cell.revision,
        "ordinal": job.ordinal,
        "implied_by": job.implied_by,
    }


def _statistics(measured: Series) -> dict[str, Any]:
    values: dict[str, Any] = {
        "iterations": measured.iterations,
        "warmup_iterations": measured.warmup_iterations,
        "ttft_iterations": measured.ttft_iterations,
        "excluded_outliers": measured.excluded_outliers,
        "itl_samples": len(measured.itl_s),
        "throughput_autocorrelation": statistics.lag1_autocorrelation(measured.metrics["throughput_tok_s"]),
    }
    for metric in METRICS:
        values |= _summary_columns(metric, measured.metrics[metric])
    values |= {f"itl_s_p{p}": value for p, value in statistics.percentiles(measured.itl_s).items()}
    values |= {f"ttft_s_p{p}": value for p, value in statistics.percentiles(measured.metrics["ttft_s"]).items()}
    return values


def _summary_columns(metric: str, sample: list[float]) -> dict[str, float | None]:
    summary = statistics.summarize(sample)
    if summary is None:
        return {}
    mean, median = summary.mean_interval, summary.median_interval
    return {
        f"{metric}_mean": summary.mean,
        f"{metric}_median": summary.median,
        f"{metric}_std": summary.std,
        f"{metric}_ci95_low": mean.low if mean else None,
        f"{metric}_ci95_high": mean.high if mean else None,
        f"{metric}_median_ci95_low": median.low if median else None,
        f"{metric}_median_ci95_high": median.high if median else None,
    }


def _memory(result: ResultRecord) -> dict[str, Any]:
    """The five stages. `peak` is the larger phase peak of each kind of memory: the stage "inference" of the paper."""
    measurement = result.measurement or {}
    cell = measurement.get("memory") or {}
    child = result.child or measurement.get("child") or {}
    prefill, decode = cell.get("peak_prefill") or {}, cell.get("peak_decode") or {}
    steady = cell.get("steady") or {}
    values: dict[str, Any] = {"load_s": child.get("load_s")}
    for stage in ("baseline", "loaded", "released"):
        reading = child.get(stage) or {}
        values |= {f"ram_{stage}_bytes": reading.get("ram_bytes"), f"vram_{stage}_bytes": reading.get("vram_bytes")}
    values |= {"ram_steady_bytes": steady.get("ram_bytes"), "vram_steady_bytes": steady.get("vram_bytes")}
    for phase, reading in (("prefill", prefill), ("decode", decode)):
        values[f"ram_peak_{phase}_bytes"] = _first(reading.get("ram_peak_bytes"), reading.get("ram_bytes"))
        values[f"vram_peak_{phase}_bytes"] = reading.get("vram_bytes")
    values |= {
        "ram_peak_bytes": _larger(values["ram_peak_prefill_bytes"], values["ram_peak_decode_bytes"]),
        "vram_peak_bytes": _larger(values["vram_peak_prefill_bytes"], values["vram_peak_decode_bytes"]),
        "vram_peak_reserved_bytes": _larger(prefill.get("vram_reserved_bytes"), decode.get("vram_reserved_bytes")),
        "vram_peak_process_bytes": _larger(prefill.get("vram_process_bytes"), decode.get("vram_process_bytes")),
        "ram_source": _first(decode.get("ram_source"), prefill.get("ram_source")),
    }
    return values


def _memory_efficiency(values: Mapping[str, Any]) -> dict[str, Any]:
    peak = memory_peak_bytes(values)
    throughput = values["throughput_tok_s_mean"]
    if not peak or throughput is None:
        return {}
    return {"memory_efficiency_tok_s_per_gb": throughput / (peak / GB)}


def memory_peak_bytes(values: Mapping[str, Any]) -> int | None:
    """Peak of the stage "inference": VRAM where the device has its own memory, else RAM."""
    peak: int | None = _first(values.get("vram_peak_bytes"), values.get("ram_peak_bytes"))
    return peak


def _evidence(result: ResultRecord, measured: Series, ceiling: Mapping[str, Any] | None) -> dict[str, Any]:
    measurement = result.measurement or {}
    child = result.child or measurement.get("child") or {}
    model = child.get("loaded_model") or (measurement.get("child") or {}).get("loaded_model") or {}
    lengths = measured.prompt_tokens_per_sequence
    hardware = (measurement.get("fingerprint") or {}).get("hardware") or {}
    energy = measurement.get("energy_j")
    return {
        "parameters": model.get("parameters"),
        "weight_bytes": model.get("weight_bytes"),
        "bits_per_weight": model.get("bits_per_weight"),
        "processor_sockets": (hardware.get("processor") or {}).get("sockets"),
        "stop_reason": measurement.get("stop_reason"),
        "energy_j": energy,
        "energy_source": measurement.get("energy_source"),
        "energy_per_token_j": energy / measured.timed_tokens if energy is not None and measured.timed_tokens else None,
        "prompt_tokens_min": lengths and lengths[0],
        "prompt_tokens_mean": lengths and lengths[1],
        "prompt_tokens_max": lengths and lengths[2],
        **quality.columns(model.get("quality")),
        **stored.columns(model, result.job.cell.dtype),
        **utilization(result, measured, ceiling),
    }


def _first(*candidates: Any) -> Any:
    return next((candidate for candidate in candidates if candidate is not None), None)


def _larger(*candidates: int | None) -> int | None:
    return max((candidate for candidate in candidates if candidate is not None), default=None)
