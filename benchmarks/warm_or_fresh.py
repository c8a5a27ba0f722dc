"""Whether a cell comes out the same in a warm group and in a process of its own.

Measures the same cells through the worker's own bench, once one after the other in one process that keeps its model
(`isolation: group`) and once with a fresh process for each (`isolation: cell`), in turns, which of the two begins changing
from round to round. A cell agrees when the 95 % intervals of the two overlap, for throughput and for the time to the first
token: over the rounds' means where there are at least three, else over the iterations.

    python benchmarks/warm_or_fresh.py --rounds 5 --json warm_or_fresh.json
    python benchmarks/warm_or_fresh.py --model EleutherAI/pythia-70m --batch 1 --rounds 1 --iterations 5

Exit code 0: all cells agree; 1: not all; 2: something could not be measured.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from effillm_server.analysis.statistics import Interval, mean_interval
from effillm_server.catalog import load
from effillm_server.contract import timeline
from effillm_server.contract.job import Cell, Lease
from effillm_server.contract.outcome import Measured, Phase
from effillm_server.contract.sweep import Isolation, MeasurementPlan
from effillm_server.settings import Settings
from effillm_worker.bench import Bench
from effillm_worker.fingerprint import detected

MODELS = ("EleutherAI/pythia-70m", "facebook/opt-125m", "EleutherAI/pythia-160m")
ENOUGH_ROUNDS = 3
METRICS = ("throughput_tok_s", "ttft_s")
Key = tuple[str, str, int]


class NotMeasured(Exception):
    """A cell that ended in something else than a measurement."""


@dataclass
class Series:
    """Values of one metric of one cell under one isolation, round by round."""

    rounds: list[list[float]] = field(default_factory=list)

    @property
    def mean(self) -> float:
        return fmean(fmean(values) for values in self.rounds)

    @property
    def interval(self) -> Interval | None:
        """Of the mean: over rounds, whose differences hold what one process has by chance, where there are enough."""
        if len(self.rounds) >= ENOUGH_ROUNDS:
            return mean_interval([fmean(values) for values in self.rounds])
        return mean_interval([value for values in self.rounds for value in values])


def overlap(one: Interval | None, two: Interval | None) -> bool | None:
    """Whether two intervals have a value in common; None where there is none to compare."""
    return None if one is None or two is None else one.low <= two.high and two.low <= one.high


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    found: dict[Key, dict[Isolation, dict[str, Series]]] = defaultdict(
        lambda: {isolation: defaultdict(Series) for isolation in Isolation}
    )
    try:
        with tempfile.TemporaryDirectory() as scratch:
            for turn in range(options.rounds):
                order = (Isolation.GROUP, Isolation.CELL)[:: 1 if turn % 2 == 0 else -1]
                for model in options.model:
                    for isolation in order:
                        _measure(options, model, isolation, turn, Path(scratch), found)
                print(f"round {turn + 1} of {options.rounds} done", file=sys.stderr, flush=True)
    except NotMeasured as error:
        print(error, file=sys.stderr)
        return 2
    rows = [row for key, series in found.items() for row in _compare(key, series)]
    _print(rows)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")
    return 0 if all(row["agree"] for row in rows) else 1


def _measure(
    options: argparse.Namespace, model: str, isolation: Isolation, turn: int, scratch: Path,
    found: dict[Key, dict[Isolation, dict[str, Series]]],
) -> None:  # fmt: skip
    """One round of one model's cells, ascending, as a device would be given them."""
    settings = Settings(data_dir=options.data_dir or scratch, lock_dir=scratch / "locks")
    device = detected("benchmark", with_cpu=True)[-1]
    plan = _plan(options)
    bench = Bench(device, settings, lambda _: None)
    try:
        for number, batch_size in enumerate(sorted(options.batch)):
            cell = _cell(options, model, batch_size)
            lease = Lease(
                job_id=number + 1, sweep_id="benchmark", fence=turn + 1, device_id=device.id, attempt=1, cell=cell, plan=plan,
                load_group=cell.load_group("benchmark"), isolation=isolation, ttl_s=3600.0,
            )  # fmt: skip
            outcome = bench.measure(lease)
            if not isinstance(outcome, Measured):
                raise NotMeasured(f"{model} batch {batch_size} ({isolation}): {outcome}")
            for metric, values in _values(outcome, batch_size).items():
                found[model, options.quantization, batch_size][isolation][metric].rounds.append(values)
    finally:
        bench.discard()


def _values(outcome: Measured, batch_size: int) -> dict[str, list[float]]:
    def of(phase: Phase) -> Iterable[Sequence[int]]:
        return (s.timestamps_ns for s in outcome.samples if s.phase is phase and not s.outlier)

    return {
        "throughput_tok_s": [timeline.throughput_tok_s(t, batch_size) for t in of(Phase.MEASURED)],
        "ttft_s": [timeline.ttft_s(t) for t in of(Phase.TTFT)],
    }


def _compare(key: Key, series: dict[Isolation, dict[str, Series]]) -> list[dict[str, Any]]:
    model, quantization, batch_size = key
    rows = []
    for metric in METRICS:
        warm, fresh = (series[isolation][metric] for isolation in (Isolation.GROUP, Isolation.CELL))
        rows.append({
            "model": model, "quantization": quantization, "batch_size": batch_size, "metric": metric,
            "warm": warm.mean, "warm_interval": _bounds(warm.interval),
            "fresh": fresh.mean, "fresh_interval": _bounds(fresh.interval),
            "ratio": warm.mean / fresh.mean, "rounds": len(warm.rounds), "agree": overlap(warm.interval, fresh.interval),
        })  # fmt: skip
    return rows


def _bounds(interval: Interval | None) -> list[float] | None:
    return None if interval is None else [interval.low, interval.high]


def _print(rows: list[dict[str, Any]]) -> None:
    print(f"{'model':24} {'b':>3} {'metric':16} {'warm':>30} {'fresh':>30} {'ratio':>7}  agree")
    for row in rows:
        shown = [
            f"{row[name]:.5g} [{', '.join(f'{bound:.5g}' for bound in row[f'{name}_interval'] or (math.nan, math.nan))}]"
            for name in ("warm", "fresh")
        ]
        print(
            f"{row['model']:24} {row['batch_size']:3} {row['metric']:16} {shown[0]:>30} {shown[1]:>30} {row['ratio']:7.3f}"
            f"  {'yes' if row['agree'] else 'NO'}"
        )


def _plan(options: argparse.Namespace) -> MeasurementPlan:
    return MeasurementPlan.model_validate({
        "warmup": {"min": 3, "max": 6}, "iterations": {"min": options.iterations, "max": options.iterations + 3},
    })  # fmt: skip


def _cell(options: argparse.Namespace, model: str, batch_size: int) -> Cell:
    return Cell(
        model=model, weights="synthetic", quantization=options.quantization, dtype="float32", engine="transformers",
        runtime="default", hardware="cpu", batch_size=batch_size, sequence_length=options.sequence,
        workload="synthetic", generate_tokens=options.tokens,
    )  # fmt: skip


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=list(MODELS), choices=sorted(load().models), metavar="MODEL")
    parser.add_argument("--quantization", default="fp32", choices=["fp32", "int8"])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--sequence", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--iterations", type=int, default=6)
    parser.add_argument("--data-dir", type=Path, help="where synthetic weights are kept; default: a scratch folder")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there too")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
