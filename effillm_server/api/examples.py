"""The examples of the OpenAPI document. A test sends every request and holds every answer against its schema."""

from __future__ import annotations

from typing import Any

SWEEP_ID = "s3kq7w2m4t6y"
JOB_ID = 1
DEVICE_ID = "bench-1-cpu"
IDEMPOTENCY_KEY = "nightly-2026-01-31"

DEFINITION: dict[str, Any] = {
    "name": "int8-against-fp32",
    "models": [{"id": "EleutherAI/pythia-70m", "weights": "synthetic"}],
    "hardware": ["cpu"],
    "quantization": ["fp32", "int8"],
    "batch_size": [1, 4],
    "sequence_length": [128],
    "generate_tokens": 32,
    "measurement": {"warmup": 3, "iterations": 5},
}

DEFINITION_YAML = """\
name: int8-against-fp32
models: [{id: EleutherAI/pythia-70m, weights: synthetic}]
hardware: [cpu]
quantization: [fp32, int8]
batch_size: [1, 4]
sequence_length: [128]
generate_tokens: 32
measurement: {warmup: 3, iterations: 5}
"""

_CREATED = "2026-01-31T08:00:00Z"
_FINISHED = "2026-01-31T08:02:10Z"

CELL: dict[str, Any] = {
    "model": "EleutherAI/pythia-70m",
    "weights": "synthetic",
    "revision": None,
    "quantization": "fp32",
    "dtype": "float32",
    "engine": "transformers",
    "runtime": "default",
    "hardware": "cpu",
    "batch_size": 1,
    "sequence_length": 128,
    "workload": "synthetic",
    "generate_tokens": 32,
    "repeat": 1,
}

SWEEP_SUMMARY: dict[str, Any] = {
    "id": SWEEP_ID,
    "name": "int8-against-fp32",
    "state": "running",
    "priority": 0,
    "owner": None,
    "visibility": "lab",
    "created_at": _CREATED,
    "finished_at": None,
    "cancelled_at": None,
    "total": 4,
    "counts": {"pending": 2, "leased": 1, "measured": 1, "infeasible": 0, "failed": 0, "cancelled": 0},
    "reasons": {},
    "device_seconds": 41.5,
}

SWEEP: dict[str, Any] = SWEEP_SUMMARY | {
    "definition": DEFINITION
    | {
        "version": 1,
        "generate_tokens": [32],
        "workload": ["synthetic"],
        "engine": ["transformers"],
        "runtime": ["default"],
        "measurement": {
            "warmup": {"min": 3, "max": 3},
            "iterations": {"min": 5, "max": 5},
            "relative_half_width": 0.02,
            "repeats": 1,
            "time_limit_s": 1800.0,
        },
        "exclude": [],
        "priority": 0,
        "visibility": "lab",
        "isolation": "group",
    },
}

PREVIEW: dict[str, Any] = {
    "total": 4,
    "pending": 2,
    "excluded": 0,
    "infeasible": {"context_window": 2},
    "examples": [
        {
            "ordinal": 2,
            "cell": CELL | {"sequence_length": 2048},
            "reason": "context_window",
            "message": "2,048 prompt + 32 generated = 2,080 tokens exceed the context window of 2,048",
        }
    ],
    "missing_hardware": [],
}

JOB: dict[str, Any] = {
    "id": JOB_ID,
    "sweep": SWEEP_ID,
    "ordinal": 0,
    "cell": CELL,
    "digest": "9f2c" * 16,
    "state": "measured",
    "reason": None,
    "message": None,
    "verdict": "valid",
    "implied_by": None,
    "faults": 0,
    "remeasures": 0,
    "fence": 1,
    "result_fence": 1,
    "device": DEVICE_ID,
    "not_before": None,
    "created_at": _CREATED,
    "finished_at": _FINISHED,
}

ATTEMPT: dict[str, Any] = {
    "fence": 1,
    "device": DEVICE_ID,
    "node": "bench-1",
    "boot_id": "b7d1c0",
    "started_at": _CREATED,
    "ended_at": _FINISHED,
    "outcome": "measured",
    "reason": None,
    "message": None,
    "exit_code": None,
    "signal": None,
    "log_tail": [],
    "code_version": "0.1.0",
}

JOB_DETAIL: dict[str, Any] = JOB | {
    "explanation": "measured on bench-1-cpu",
    "attempts": [ATTEMPT],
    "result": {
        "row": {"sweep": SWEEP_ID, "job": JOB_ID, "state": "measured", "throughput_tok_s_mean": 101.4},
        "measurement": {"verdict": "valid", "reasons": [], "energy_j": None},
        "samples": [
            {"iteration": 0, "phase": "measured", "prompt_tokens": 128, "timestamps_ns": [0, 9_100_000, 18_300_000]}
        ],
        "child": {"load_s": 0.8},
    },
}

DEVICE: dict[str, Any] = {
    "id": DEVICE_ID,
    "hardware_class": "cpu",
    "node": "bench-1",
    "memory_bytes": 16_000_000_000,
    "declared": False,
    "state": "leased",
    "reason": None,
    "job": JOB_ID,
    "load_group": "5d41402abc4b2a76",
    "last_seen": _FINISHED,
    "fingerprint": "1f3870be274f6c49",
    "ceiling": None,
    "details": {},
}

CHANGED: dict[str, Any] = {"changed": 3, "sweep": SWEEP_SUMMARY | {"state": "cancelled", "cancelled_at": _FINISHED}}

FRONTIER: dict[str, Any] = {
    name: CELL[name]
    for name in (
        "model",
        "weights",
        "quantization",
        "dtype",
        "engine",
        "runtime",
        "hardware",
        "workload",
        "generate_tokens",
        "sequence_length",
    )
} | {"largest_batch_size": 4, "smallest_infeasible_batch_size": 8, "reason": "out_of_host_memory"}

ROW: dict[str, Any] = {
    "sweep": SWEEP_ID,
    "job": JOB_ID,
    "state": "measured",
    "verdict": "valid",
    "model": "EleutherAI/pythia-70m",
    "batch_size": 1,
    "throughput_tok_s_mean": 101.4,
    "throughput_tok_s_ci95_low": 99.8,
    "throughput_tok_s_ci95_high": 103.0,
}

ROWS_CSV = f"sweep,job,state,reason,verdict\n{SWEEP_ID},{JOB_ID},measured,,valid\n"

EVENT: dict[str, Any] = {
    "id": 7,
    "kind": "job_measured",
    "sweep": SWEEP_ID,
    "job": JOB_ID,
    "at": _FINISHED,
    "data": {},
}

EVENT_STREAM = f'id: 7\nevent: job_measured\ndata: {{"id":7,"kind":"job_measured","sweep":"{SWEEP_ID}"}}\n\n'

HEALTH: dict[str, Any] = {"status": "ok"}

METRICS = """\
# HELP effillm_jobs Jobs by state.
# TYPE effillm_jobs gauge
effillm_jobs{state="pending"} 2
"""
