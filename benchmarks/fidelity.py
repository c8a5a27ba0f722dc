"""EffiLLM's throughput and first-token latency beside a bare loop around the same loaded model.

    python benchmarks/fidelity.py [--model EleutherAI/pythia-70m] [--batch 1 8] [--quantization fp32 int8] [--json FILE]

One process holds the model and alternates blocks of EffiLLM's own iterations, with this process watching conditions as in
production, and blocks of a bare `generate` loop; so both share the process's luck and the machine's weather. The figure is the
geometric mean of the paired ratios with its 95 % interval; which of the two comes first alternates from pair to pair. Pairs
are added until the interval's half-width is at most 1 %.

Exit: 0 every ratio decided and inside 0.98 to 1.02 (probe overhead below 1 %), 1 one of them outside, 3 one undecided.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from effillm_server.catalog import load
from effillm_server.contract.job import Cell
from effillm_worker.fingerprint import detected, processors, threads
from effillm_worker.measure.channel import COMMAND_FD, PROGRESS_FD, REPORT_FD
from effillm_worker.measure.student import half_width
from effillm_worker.witness import Instruments

ARM = Path(__file__).parent / "arms" / "session_and_bare.py"
REPOSITORY = Path(__file__).parents[1]
BLOCK = 3
FEWEST_PAIRS = 6
HALF_WIDTH = 0.01
INSIDE = (0.98, 1.02)
OVERHEAD = 0.01
DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


@dataclass(frozen=True)
class Ratio:
    """EffiLLM over bare loop: geometric mean of the pairs and its 95 % interval."""

    mean: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        return (self.high - self.low) / 2

    @classmethod
    def of(cls, logarithms: Sequence[float]) -> Ratio:
        middle, half = statistics.fmean(logarithms), half_width(logarithms)
        return cls(math.exp(middle), math.exp(middle - half), math.exp(middle + half))


@dataclass
class Comparison:
    """One cell's pairs so far. `wall_s` is the time of a whole block: its ratio less 1 is the probe overhead."""

    batch_size: int
    quantization: str
    logarithms: dict[str, list[float]] = field(
        default_factory=lambda: {"throughput_tok_s": [], "ttft_s": [], "wall_s": []}
    )

    @property
    def pairs(self) -> int:
        return len(self.logarithms["wall_s"])

    def add(self, session: dict[str, float], bare: dict[str, float]) -> None:
        for name, values in self.logarithms.items():
            values.append(math.log(session[name] / bare[name]))

    def ratios(self) -> dict[str, Ratio]:
        return {name: Ratio.of(values) for name, values in self.logarithms.items()}

    @property
    def decided(self) -> bool:
        return self.pairs >= FEWEST_PAIRS and all(ratio.half_width <= HALF_WIDTH for ratio in self.ratios().values())

    @property
    def verdict(self) -> str:
        """`undecided`, `outside` or `inside`."""
        if not self.decided:
            return "undecided"
        ratios = self.ratios()
        timed = (ratios["throughput_tok_s"], ratios["ttft_s"])
        inside = all(INSIDE[0] <= ratio.low and ratio.high <= INSIDE[1] for ratio in timed)
        return "inside" if inside and ratios["wall_s"].mean - 1 < OVERHEAD else "outside"

    def report(self) -> dict[str, Any]:
        return {
            "batch_size": self.batch_size,
            "quantization": self.quantization,
            "pairs": self.pairs,
            "verdict": self.verdict,
            "ratios": {name: asdict(ratio) for name, ratio in self.ratios().items()},
        }


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    done = []
    with tempfile.TemporaryDirectory() as scratch:
        cache = options.cache_dir or Path(scratch)
        for quantization in options.quantization:
            for batch_size in options.batch:
                comparison = Comparison(batch_size, quantization)
                compare(comparison, options, cache)
                done.append(comparison)
                print(_line(comparison), flush=True)
    if options.json:
        options.json.write_text(
            json.dumps({"model": options.model, "cells": [each.report() for each in done]}, indent=2)
        )
    verdicts = {each.verdict for each in done}
    return 3 if "undecided" in verdicts else int("outside" in verdicts)


def compare(comparison: Comparison, options: argparse.Namespace, cache: Path) -> None:
    """Add pairs until every ratio is decided or `--max-pairs` are there."""
    instruments = Instruments.of(detected("benchmark", with_cpu=True)[-1])
    with _arm(_order(comparison, options, cache)) as (process, ask):
        told = time.monotonic()
        while not comparison.decided and comparison.pairs < options.max_pairs:
            found: dict[str, dict[str, float]] = {}
            for arm in ("session", "bare") if comparison.pairs % 2 else ("bare", "session"):
                watch = instruments.watch(process.pid, instruments.energy())
                if arm == "session":
                    watch.open()
                found[arm] = ask(f"{arm} {BLOCK}")
                watch.close()
            comparison.add(found["session"], found["bare"])
            if comparison.pairs > 1 and time.monotonic() - told > 10:
                told = time.monotonic()
                print(f"  {_line(comparison)}", file=sys.stderr, flush=True)


@contextmanager
def _arm(order: dict[str, Any]) -> Iterator[tuple[subprocess.Popen[str], Any]]:
    """The process with the model, and how to ask it for a block; its reports are read and dropped, as a parent would."""
    command, commands = os.pipe()
    reports, report = os.pipe()
    progress = os.memfd_create("progress")
    os.ftruncate(progress, 8)
    process = subprocess.Popen(
        [sys.executable, str(ARM), json.dumps(order)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), COMMAND_FD: str(command), REPORT_FD: str(report), PROGRESS_FD: str(progress)},
        pass_fds=(command, report, progress), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    for descriptor in (command, report, progress):
        os.close(descriptor)
    drain = threading.Thread(target=_drain, args=(reports,))
    drain.start()

    def ask(line: str) -> dict[str, float]:
        assert process.stdin and process.stdout
        if line:
            process.stdin.write(line + "\n")
            process.stdin.flush()
        answer: dict[str, float] = json.loads(process.stdout.readline())
        return answer

    try:
        ask("")
        yield process, ask
    finally:
        process.communicate()
        os.close(commands)
        drain.join()


def _drain(descriptor: int) -> None:
    with os.fdopen(descriptor, "rb") as reports:
        while reports.readline():
            pass


def _order(comparison: Comparison, options: argparse.Namespace, cache: Path) -> dict[str, Any]:
    dtype = DTYPES.get(comparison.quantization, "float32")
    cell = Cell(
        model=options.model, weights="synthetic", quantization=comparison.quantization, dtype=dtype, engine="transformers",
        runtime="default", hardware="cpu", batch_size=comparison.batch_size, sequence_length=options.sequence,
        workload="synthetic", generate_tokens=options.tokens,
    )  # fmt: skip
    facts = load().models[options.model]
    return {
        "cell": cell.model_dump(mode="json"),
        "threads": options.threads,
        "cache_dir": str(cache),
        "architecture": facts.architecture,
    }


def _line(comparison: Comparison) -> str:
    cells = [f"{comparison.quantization} b={comparison.batch_size}", f"{comparison.pairs} pairs"]
    for name, ratio in comparison.ratios().items():
        cells.append(f"{name.rsplit('_', 1)[0]} {ratio.mean:.4f} [{ratio.low:.4f}, {ratio.high:.4f}]")
    return "  ".join([*cells, comparison.verdict])


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="EleutherAI/pythia-70m", choices=sorted(load().models))
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--quantization", nargs="+", default=["fp32", "int8"], choices=[*DTYPES, "int8", "int4"])
    parser.add_argument("--sequence", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--threads", type=int, default=threads(processors()))
    parser.add_argument("--max-pairs", type=int, default=300, help="give up undecided after as many")
    parser.add_argument("--cache-dir", type=Path, help="where synthetic weights are kept; default: a scratch folder")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there too")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
