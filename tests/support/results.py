"""Result records made of chosen numbers, for the tests of analysis and figures."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import count
from typing import Any

from effillm_server.contract.job import Cell
from effillm_server.lifecycle import JobState
from effillm_server.records import JobRecord, ResultRecord

NS = 1_000_000_000
_numbers = count(1)


def cell(**changes: Any) -> Cell:
    values: dict[str, Any] = {
        "model": "facebook/opt-125m", "weights": "synthetic", "quantization": "fp32", "dtype": "float32",
        "engine": "transformers", "runtime": "default", "hardware": "cpu", "batch_size": 2, "sequence_length": 128,
        "workload": "synthetic", "generate_tokens": 4,
    }  # fmt: skip
    return Cell.model_validate(values | changes)


def timeline(ttft_s: float, gaps_s: Sequence[float], start_ns: int = 10**12) -> list[int]:
    """Timestamps of an iteration with this first-token time and these gaps."""
    stamps = [start_ns, start_ns + round(ttft_s * NS)]
    for gap in gaps_s:
        stamps.append(stamps[-1] + round(gap * NS))
    return stamps


def sample(
    phase: str, iteration: int, stamps: list[int], *, prompt_tokens: int = 256, outlier: bool = False
) -> dict[str, Any]:
    return {
        "phase": phase, "iteration": iteration, "timestamps_ns": stamps, "prompt_tokens": prompt_tokens, "outlier": outlier,
    }  # fmt: skip


def job(of: Cell, state: JobState = JobState.MEASURED, **changes: Any) -> JobRecord:
    number = next(_numbers)
    values: dict[str, Any] = {
        "id": number, "sweep_id": "s-test", "ordinal": number, "cell": of, "digest": "d", "state": state, "reason": None,
        "message": None, "implied_by": None, "faults": 0, "remeasures": 0, "fence": 1, "result_fence": 1,
        "device_id": "box-cpu0", "not_before": None, "created_at": datetime.now(UTC), "finished_at": None, "verdict": None,
    }  # fmt: skip
    return JobRecord(**(values | changes))


def measurement(**changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "kind": "measured", "stop_reason": "max_iterations", "verdict": "valid", "reasons": [], "simulated": False,
        "energy_j": None, "energy_source": "RAPL is not readable", "prompts": {}, "details": {},
        "memory": {
            "peak_prefill": {"ram_bytes": 900, "ram_peak_bytes": 1_000_000_000, "ram_source": "VmHWM"},
            "peak_decode": {"ram_bytes": 800, "ram_peak_bytes": 800_000_000, "ram_source": "VmHWM"},
            "steady": {"ram_bytes": 700_000_000}, "account": {},
        },
        "child": {
            "id": "c1", "load_s": 1.5, "baseline": {"ram_bytes": 300_000_000}, "loaded": {"ram_bytes": 650_000_000},
            "released": {"ram_bytes": 310_000_000},
            "loaded_model": {
                "parameters": 125_239_296, "weight_bytes": 500_957_184, "bits_per_weight": 32.0,
                "details": {"multiplied_weights": 123_543_552, "head_weights": 38_608_896, "looked_up_bytes": 6_297_600},
            },
        },
    }  # fmt: skip
    return values | changes


def result(samples: Sequence[dict[str, Any]] = (), of: Cell | None = None, **changes: Any) -> ResultRecord:
    return ResultRecord(
        job=job(of or cell()),
        device_id="box-cpu0",
        fence=1,
        fingerprint_digest="abcd",
        measurement=measurement(**changes),
        samples=tuple(samples),
        child=measurement(**changes)["child"],
    )
