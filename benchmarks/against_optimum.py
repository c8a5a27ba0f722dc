"""The same cells by optimum-benchmark, by EffiLLM and by a bare loop, alternating in one run.

    python benchmarks/against_optimum.py --optimum OTHER_ENV/bin/python [--model EleutherAI/pythia-70m] [--rounds 5] [--json FILE]

Each tool runs in its own environment and is compared with a bare loop in that same environment, so that another version of
transformers is not held against it. Same synthetic weights, threads, prompt length, tokens, warm-ups and iterations; nothing
else of ours runs meanwhile. Reported: the decode speed each tool states, over the bare loop's; and wall time per cell, everything
included (start, load, warm-up, measuring).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

from scipy.stats import t as student

from effillm_server.catalog import load
from effillm_server.contract.job import Cell
from effillm_server.contract.outcome import Measured
from effillm_server.contract.quantization import Quantization
from effillm_server.contract.sweep import Engine, MeasurementPlan, Weights
from effillm_worker.fingerprint import detected
from effillm_worker.isolate import Child, ChildSpec
from effillm_worker.messages import Open, Run

ARMS = Path(__file__).parent / "arms"
REPOSITORY = Path(__file__).parents[1]


def main() -> int:
    arguments = parse()
    with tempfile.TemporaryDirectory(prefix="effillm-against-") as folder:
        cells = [
            compare(arguments, batch, Path(folder), random.Random(arguments.seed + batch)) for batch in arguments.batch
        ]
    report = {"command": " ".join(sys.argv), "model": arguments.model, "threads": arguments.threads, "cells": cells}
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    for cell in cells:
        print(
            f"\n{arguments.model} fp32, batch {cell['batch']}, {arguments.sequence} + {arguments.tokens} tokens, {arguments.rounds} rounds"
        )
        for tool in ("optimum", "effillm"):
            ratio, seconds = cell[tool]["decode_over_bare"], cell[tool]["wall_s"]
            low, high = ratio["ci95"]
            speed = f"{ratio['mean']:.3f} [{low:.3f}, {high:.3f}]"
            print(f"  {tool:8} decode speed over bare loop {speed}   wall per cell {median(seconds):.1f} s")
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--optimum", required=True, help="interpreter of an environment with optimum-benchmark")
    parser.add_argument("--model", default="EleutherAI/pythia-70m")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--sequence", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def compare(arguments: argparse.Namespace, batch: int, folder: Path, order: random.Random) -> dict[str, Any]:
    """Rounds of all four arms in random order for one batch size."""
    cache = folder / "cache"
    first = effillm(arguments, batch, cache)  # writes the synthetic weights, not counted
    weights = next(path.parent for path in cache.rglob("config.json"))
    orders = {
        "model": str(weights), "batch": batch, "sequence": arguments.sequence, "tokens": arguments.tokens,
        "warmup": arguments.warmup, "iterations": arguments.iterations, "threads": arguments.threads,
    }  # fmt: skip
    arms: dict[str, Callable[[], dict[str, float]]] = {
        "effillm": lambda: effillm(arguments, batch, cache),
        "effillm_bare": lambda: script(sys.executable, "bare_loop.py", orders),
        "optimum": lambda: script(arguments.optimum, "optimum_arm.py", orders),
        "optimum_bare": lambda: script(arguments.optimum, "bare_loop.py", orders),
    }
    seen: dict[str, list[dict[str, float]]] = {name: [] for name in arms}
    for number in range(arguments.rounds):
        names = list(arms)
        order.shuffle(names)
        for name in names:
            started = time.perf_counter()
            figures = arms[name]()
            seen[name].append({**figures, "wall_s": time.perf_counter() - started})
            print(
                f"round {number + 1}/{arguments.rounds} batch {batch} {name}: {figures['decode_tok_s']:.1f} tok/s",
                file=sys.stderr,
            )
    return {"batch": batch, "first_effillm": first} | {
        tool: {
            "decode_over_bare": ratio(
                [run["decode_tok_s"] for run in seen[tool]], [run["decode_tok_s"] for run in seen[f"{tool}_bare"]]
            ),
            "ttft_over_bare": ratio(
                [run["ttft_s"] for run in seen[tool]], [run["ttft_s"] for run in seen[f"{tool}_bare"]]
            ),
            "wall_s": [run["wall_s"] for run in seen[tool]],
            "runs": seen[tool],
            "bare_runs": seen[f"{tool}_bare"],
        }
        for tool in ("optimum", "effillm")
    }


def script(interpreter: str, name: str, orders: dict[str, Any]) -> dict[str, float]:
    """The last line an arm prints, as numbers. Raises RuntimeError with the arm's messages when it fails."""
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "OVERRIDE_BENCHMARKS": "1",
        "OMP_NUM_THREADS": str(orders["threads"]),
    }
    with tempfile.TemporaryDirectory() as folder:
        ran = subprocess.run(
            [interpreter, str(ARMS / name), json.dumps(orders)],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
    if ran.returncode:
        raise RuntimeError(f"{name} failed:\n{ran.stdout[-1000:]}\n{ran.stderr[-3000:]}")
    figures: dict[str, float] = json.loads(ran.stdout.strip().splitlines()[-1])
    return figures


def effillm(arguments: argparse.Namespace, batch: int, cache: Path) -> dict[str, float]:
    """The cell as a worker actor measures it: supervisor, child, all meters on."""
    device = next(device for device in detected("benchmark", with_cpu=True) if device.gpu_uuid is None)
    cell = Cell(
        model=arguments.model, weights=Weights.SYNTHETIC, quantization=Quantization.FP32, dtype="float32", engine=Engine.TRANSFORMERS,
        runtime="default", hardware=device.hardware_class, batch_size=batch, sequence_length=arguments.sequence, workload="synthetic",
        generate_tokens=arguments.tokens,
    )  # fmt: skip
    plan = MeasurementPlan.model_validate({"warmup": arguments.warmup, "iterations": arguments.iterations})
    child = Child.start(
        ChildSpec(
            device=device, interpreter=sys.executable, lock_dir=cache.parent / "lock", work_dir=cache.parent / "work",
            threads=arguments.threads,
            environment={"PYTHONPATH": str(REPOSITORY)},
        )
    )  # fmt: skip
    try:
        child.open(
            Open(
                cell=cell,
                threads=arguments.threads,
                device="cpu",
                architecture=load().models[arguments.model].architecture,
                cache_dir=str(cache),
            ),
            600,
        )
        outcome = child.run(Run(cell=cell, plan=plan), deadline_s=1800)
        child.close(60)
    finally:
        child.kill()
    if not isinstance(outcome, Measured):
        raise RuntimeError(f"EffiLLM did not measure the cell: {outcome}")
    stamps = [sample.timestamps_ns for sample in outcome.samples if sample.phase == "measured" and not sample.outlier]
    first = [sample.timestamps_ns for sample in outcome.samples if sample.phase == "ttft"]
    return {
        "decode_tok_s": mean((len(s) - 2) * batch * 1e9 / (s[-1] - s[1]) for s in stamps),
        "ttft_s": mean((s[1] - s[0]) * 1e-9 for s in first),
    }


def ratio(tool: list[float], bare: list[float]) -> dict[str, Any]:
    """Geometric mean of the paired ratios with its Student-t 95 % interval on the log scale."""
    logs = [math.log(a / b) for a, b in zip(tool, bare, strict=True)]
    half = float(student.ppf(0.975, len(logs) - 1)) * stdev(logs) / math.sqrt(len(logs)) if len(logs) > 1 else math.inf
    centre = mean(logs)
    return {
        "mean": math.exp(centre),
        "ci95": [math.exp(centre - half), math.exp(centre + half)] if len(logs) > 1 else [0.0, math.inf],
    }


if __name__ == "__main__":
    sys.exit(main())
