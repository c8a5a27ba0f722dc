"""EffiLLM's throughput and first-token latency beside a bare loop around the same loaded model.

    python benchmarks/fidelity.py [--model EleutherAI/pythia-70m] [--batch 1 8] [--quantization fp32 int8] [--json FILE]

One process holds the model and alternates blocks of EffiLLM's own iterations, with this process watching conditions as in
production, and blocks of a bare `generate` loop; so both share the process's luck and the machine's weather. First tokens
are short, so they alternate one by one and each pair compares the medians of up to five neighbours. Which of the two comes first
alternates from pair to pair. The figure is the pseudo-median of the paired ratios (Hodges and Lehmann) with the 95 % interval
of Wilcoxon's signed ranks: a neighbour on the same host stretches single blocks many times over, which a mean never gets over.
Pairs of each figure are added until its half-width is at most 1 % and no bound lies within the interval. The geometric mean
and its Student interval stand beside it in the JSON, and so does every pair.

The bare loop takes the moment of the first token from the stream that `generate` offers. `ttft_over_wall`, without a bound, holds
EffiLLM's first token against the return of a `generate` of one token, which gives up its cache before it returns.

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
# First tokens of each arm in a pair, for a batch of one: larger batches take as much longer and are steadier.
FIRST_TOKENS = 5
FEWEST_PAIRS = 20
HALF_WIDTH = 0.01
NORMAL_975 = float(stats.norm.ppf(0.975))
INSIDE = (0.98, 1.02)
# What each ratio's interval must lie within. `wall_s` less 1 is the probe overhead: below 1 %, and no bound to being faster.
WITHIN = {"throughput_tok_s": INSIDE, "ttft_s": INSIDE, "wall_s": (0.0, 1.01)}
DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


@dataclass
class Comparison:
    """One cell's pairs so far. `wall_s` is the time of a whole block: its ratio less 1 is the probe overhead."""

    batch_size: int
    quantization: str
    logarithms: dict[str, list[float]] = field(
        default_factory=lambda: {"throughput_tok_s": [], "ttft_s": [], "wall_s": []}
    )
    over_wall: list[float] = field(default_factory=list)

    def add(self, session: dict[str, float], bare: dict[str, float]) -> None:
        for name in ("throughput_tok_s", "wall_s"):
            self.logarithms[name].append(math.log(session[name] / bare[name]))

    def add_first_tokens(self, session_s: float, bare_s: float, bare_wall_s: float) -> None:
        self.logarithms["ttft_s"].append(math.log(session_s / bare_s))
        self.over_wall.append(math.log(session_s / bare_wall_s))

    def ratios(self) -> dict[str, Ratio]:
        return {name: pseudo_median(values) for name, values in self.logarithms.items()}

    def is_decided(self, name: str) -> bool:
        """Whether this figure's interval is tight enough and on one side of each bound."""
        values = self.logarithms[name]
        return len(values) >= FEWEST_PAIRS and settles(pseudo_median(values), WITHIN[name])

    @property
    def decided(self) -> bool:
        return all(self.is_decided(name) for name in self.logarithms)

    @property
    def verdict(self) -> str:
        """`undecided`, `outside` or `inside`."""
        if not self.decided:
            return "undecided"
        ratios = self.ratios()
        inside = all(low <= ratios[name].low and ratios[name].high <= high for name, (low, high) in WITHIN.items())
        return "inside" if inside else "outside"

    def report(self) -> dict[str, Any]:
        return {
            "batch_size": self.batch_size,
            "quantization": self.quantization,
            "pairs": {name: len(values) for name, values in self.logarithms.items()},
            "verdict": self.verdict,
            "ratios": {name: asdict(ratio) for name, ratio in self.ratios().items()},
            "geometric_means": {name: asdict(Ratio.of(values)) for name, values in self.logarithms.items()},
            "ttft_over_wall": asdict(pseudo_median(self.over_wall)),
            "logarithms": self.logarithms,
        }


def settles(ratio: Ratio, within: tuple[float, float]) -> bool:
    """Whether no more pairs are needed: the interval is tight and no bound lies inside it.

    Looked at after every pair, so a decided interval is chosen for being clear of the bounds. What it is then worth is
    simulated by benchmarks/coverage.py: docs/measured.md.
    """
    return ratio.half_width <= HALF_WIDTH and not any(ratio.low < bound < ratio.high for bound in within)


def pseudo_median(logarithms: Sequence[float]) -> Ratio:
    """Hodges-Lehmann estimate and signed-rank 95 % interval (normal approximation, 20 pairs or more) of paired ratios.

    Hollander, Wolfe and Chicken, Nonparametric Statistical Methods, 3.2 and 3.3: the median of all pairwise means, and those of
    them that Wilcoxon's test would not reject.
    """
    values, count = np.asarray(logarithms, float), len(logarithms)
    if count < FEWEST_PAIRS:
        return Ratio.of(logarithms) if count > 1 else Ratio(math.exp(logarithms[0]), 0.0, math.inf)
    return of_means(np.sort(((values[:, None] + values[None, :]) / 2)[np.triu_indices(count)]), count)


def of_means(means: Any, count: int) -> Ratio:
    """The same from the sorted means of all pairs of `count` logarithms, each with itself among them."""
    spread = NORMAL_975 * math.sqrt(count * (count + 1) * (2 * count + 1) / 24)
    cut = max(0, math.floor(count * (count + 1) / 4 - spread))
    median = (means[(len(means) - 1) // 2] + means[len(means) // 2]) / 2
    return Ratio(math.exp(median), math.exp(means[cut]), math.exp(means[-1 - cut]))


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
                    # After every cell: an hour's pairs outlast the hand that stops it.
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
        for number in range(options.max_pairs):
            if comparison.decided:
                break
            if not (comparison.is_decided("throughput_tok_s") and comparison.is_decided("wall_s")):
                comparison.add(*both.pair(number, BLOCK))
            if not comparison.is_decided("ttft_s"):
                comparison.add_first_tokens(*both.first_tokens(number, max(1, FIRST_TOKENS // comparison.batch_size)))
            if number > 0 and time.monotonic() - told > 10:
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
    cells = [f"{comparison.quantization} b={comparison.batch_size}"]
    for name, ratio in comparison.ratios().items():
        what, count = name.partition("_")[0], len(comparison.logarithms[name])
        cells.append(f"{what} {ratio.mean:.4f} [{ratio.low:.4f}, {ratio.high:.4f}] of {count} pairs")
    return "  ".join([*cells, comparison.verdict])


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="EleutherAI/pythia-70m", choices=sorted(load().models))
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--quantization", nargs="+", default=["fp32", "int8"], choices=[*DTYPES, "int8", "int4"])
    parser.add_argument("--sequence", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--threads", type=int, default=threads(processors()))
    parser.add_argument("--max-pairs", type=int, default=600, help="give up undecided after as many")
    parser.add_argument("--cache-dir", type=Path, help="where synthetic weights are kept; default: a scratch folder")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there too")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
