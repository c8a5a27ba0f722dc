"""EffiLLM's throughput and first-token latency beside a bare loop around the same loaded model.

    python benchmarks/fidelity.py [--model EleutherAI/pythia-70m] [--batch 1 8] [--quantization fp32 int8] [--json FILE]

One process holds the model and alternates blocks of EffiLLM's own iterations, with this process watching conditions as in
production, and blocks of a bare `generate` loop; so both share the process's luck and the machine's weather. First tokens
are short, so they alternate one by one and each pair compares the medians of five neighbours. Which of the two comes first
alternates from pair to pair. The figure is the pseudo-median of the paired ratios (Hodges and Lehmann) with the 95 % interval
of Wilcoxon's signed ranks: a neighbour on the same host stretches single blocks many times over, which a mean never gets over.
Pairs are added until the interval's half-width is at most 1 %. The geometric mean and its Student interval stand beside it in the
JSON, and so does every pair.

Exit: 0 every ratio decided and inside 0.98 to 1.02 (probe overhead below 1 %), 1 one of them outside, 3 one undecided.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from effillm_server.catalog import load
from effillm_server.contract.job import Cell
from effillm_worker.fingerprint import detected, processors, threads
from effillm_worker.paired import Ratio, arm

# One generation a block: the shorter the turn, the more of the machine's weather the two share.
BLOCK = 1
FIRST_TOKENS = 5
FEWEST_PAIRS = 20
HALF_WIDTH = 0.01
INSIDE = (0.98, 1.02)
OVERHEAD = 0.01
DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


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

    def add(self, session: dict[str, float], bare: dict[str, float], first: tuple[float, float]) -> None:
        for name in ("throughput_tok_s", "wall_s"):
            self.logarithms[name].append(math.log(session[name] / bare[name]))
        self.logarithms["ttft_s"].append(math.log(first[0] / first[1]))

    def ratios(self) -> dict[str, Ratio]:
        return {name: pseudo_median(values) for name, values in self.logarithms.items()}

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
            "geometric_means": {name: asdict(Ratio.of(values)) for name, values in self.logarithms.items()},
            "logarithms": self.logarithms,
        }


def pseudo_median(logarithms: Sequence[float]) -> Ratio:
    """Hodges-Lehmann estimate and signed-rank 95 % interval (normal approximation, 20 pairs or more) of paired ratios.

    Hollander, Wolfe and Chicken, Nonparametric Statistical Methods, 3.2 and 3.3: the median of all pairwise means, and those of
    them that Wilcoxon's test would not reject.
    """
    values, count = np.asarray(logarithms, float), len(logarithms)
    if count < FEWEST_PAIRS:
        return Ratio.of(logarithms) if count > 1 else Ratio(math.exp(logarithms[0]), 0.0, math.inf)
    means = np.sort(((values[:, None] + values[None, :]) / 2)[np.triu_indices(count)])
    spread = float(stats.norm.ppf(0.975)) * math.sqrt(count * (count + 1) * (2 * count + 1) / 24)
    cut = max(0, math.floor(count * (count + 1) / 4 - spread))
    return Ratio(math.exp(np.median(means)), math.exp(means[cut]), math.exp(means[-1 - cut]))


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
    device = detected("benchmark", with_cpu=True)[-1]
    with arm(device, _cell(comparison, options), cache, options.threads) as both:
        both.ask("")
        told = time.monotonic()
        while not comparison.decided and comparison.pairs < options.max_pairs:
            number = comparison.pairs
            comparison.add(*both.pair(number, BLOCK), both.first_tokens(number, FIRST_TOKENS))
            if comparison.pairs > 1 and time.monotonic() - told > 10:
                told = time.monotonic()
                print(f"  {_line(comparison)}", file=sys.stderr, flush=True)


def _cell(comparison: Comparison, options: argparse.Namespace) -> Cell:
    dtype = DTYPES.get(comparison.quantization, "float32")
    return Cell(
        model=options.model, weights="synthetic", quantization=comparison.quantization, dtype=dtype, engine="transformers",
        runtime="default", hardware="cpu", batch_size=comparison.batch_size, sequence_length=options.sequence,
        workload="synthetic", generate_tokens=options.tokens,
    )  # fmt: skip


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
