"""The examples of the routes that analyse, draw, compare and recommend."""

from __future__ import annotations

from typing import Any

from effillm_server.api.examples import CELL, JOB_ID, SWEEP_ID

FIGURE = "throughput-vs-batch"
SIDE_A = f"{SWEEP_ID}:batch_size=1"
SIDE_B = f"{SWEEP_ID}:batch_size=4"
AXES = {
    name: CELL[name]
    for name in (
        "model",
        "weights",
        "quantization",
        "dtype",
        "engine",
        "batch_size",
        "sequence_length",
        "workload",
        "generate_tokens",
        "hardware",
        "runtime",
    )
}

ANALYSIS: dict[str, Any] = {
    "summary": {"rows": 4, "states": {"measured": 2, "pending": 2}, "used": 2, "simulated": False, "remark": None},
    "noise_floor": {"sd_of_ratio": 0.06, "source": "assumed; `effillm doctor` measures this machine's own"},
    "fits": [],
    "batch_exponent_by_sequence": [],
    "batch_scaling": [],
    "best_batch": [],
    "quantization": [],
    "cost": [],
    "cliffs": [],
    "variance": [],
    "frontier": [],
    "pareto": [],
    "claims": [],
    "findings": [
        {
            "kind": "fastest",
            "sentence": "Highest throughput on cpu: 101 tok/s (95 % interval 99.8 to 103) with pythia-70m, cpu, fp32, b = 1.",
            "jobs": [JOB_ID],
        }
    ],
}

FIGURES: dict[str, Any] = {
    "items": [
        {
            "name": FIGURE,
            "number": 3,
            "title": "Throughput against batch size",
            "can_be_drawn": False,
            "needs": "at least two batch sizes with throughput_tok_s on one line; found 1",
        }
    ]
}

COMPARISON: dict[str, Any] = {
    "a": {"sweep": SWEEP_ID, "name": "int8-against-fp32", "filters": {"batch_size": [1]}},
    "b": {"sweep": SWEEP_ID, "name": "int8-against-fp32", "filters": {"batch_size": [4]}},
    "metric": "throughput_tok_s",
    "margin": 0.03,
    "alpha": 0.05,
    "across": {"batch_size": [[1], [4]]},
    "held_equal": [axis for axis in AXES if axis != "batch_size"],
    "cells": [
        {
            **{axis: value for axis, value in AXES.items() if axis != "batch_size"},
            "a": 66.7,
            "b": 266.7,
            "ratio": 4.0,
            "ratio_low": 3.5,
            "ratio_high": 4.6,
            "change": 3.0,
            "verdict": "faster",
        }
    ],
    "counts": {"faster": 1, "slower": 0, "same": 0, "unsure": 0},
    "geometric_mean_ratio": 4.0,
    "only_in_a": 0,
    "only_in_b": 0,
    "without_metric": 0,
    "comparability": {"comparable": True, "decisive": {}, "minor": {}, "why": "all rows carry the same fingerprint"},
    "remarks": ["p-values are Holm-adjusted over 1 cells; the intervals are not"],
    "fail_if": None,
    "tripped": [],
}

RECOMMENDATION_REQUEST: dict[str, Any] = {
    "sweep": SWEEP_ID,
    "aim": "throughput",
    "max_memory": "16GB",
    "max_ttft": "200ms",
}

RECOMMENDATION: dict[str, Any] = {
    "aim": "throughput",
    "aim_said": "most tokens per second",
    "simulated": False,
    "considered": 2,
    "allowed": 2,
    "recommended": {**AXES, "values": {"throughput_tok_s": 266.7, "ttft_s": 0.01}, "jobs": [JOB_ID], "processes": 1},
    "is_tie": False,
    "ties": [],
    "next": None,
    "pareto": [],
    "what_would_change_it": [],
    "sentence": "pythia-70m, cpu, fp32, b = 1: most tokens per second, 267 tok/s; it is the only configuration that keeps the limits",
    "rests_on": [JOB_ID],
    "note": "",
}

SVG = '<svg xmlns="http://www.w3.org/2000/svg"></svg>'
REPORT = "<!doctype html><title>EffiLLM report: int8-against-fp32</title>"
