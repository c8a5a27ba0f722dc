"""How much of a cell's memory growth its account explains, and how far the process returns to its baseline.

Measures through the worker's own child. A cell is `explained` when the account leaves at most 5 % of the growth from
`baseline` to the peak unexplained, in either direction: heap and mapped files, by instruments of their own, account for the kernel's
figure. That says nothing of weights and cache, which cancel out of the remainder; so a cell `agrees` when the counted cache and, unless
quantized, the counted weights lie within 5 % of their predictions. A process is `returned` when `released` lies within 10 % of
`baseline`.

    python benchmarks/memory_account.py --model EleutherAI/pythia-70m --batch 1 4 --json memory.json

Exit code 0: all cells explained and agreeing, all processes returned; 1: not all; 2: something could not be measured.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from effillm_server.catalog import load
from effillm_server.contract.account import PREDICTED, Line
from effillm_server.contract.job import Cell
from effillm_server.contract.outcome import ChildRecord, Measured
from effillm_server.contract.sweep import MeasurementPlan
from effillm_worker.fingerprint import detected, processors, threads
from effillm_worker.isolate import Child, ChildSpec
from effillm_worker.messages import Open, Run

UNEXPLAINED = 0.05
AGREEING = 0.05
RELEASED = 0.10
DEADLINE_S = 3600.0
DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
# Memory does not get truer with repetition: the fewest iterations a plan may have.
PLAN = MeasurementPlan.model_validate({"warmup": {"min": 3, "max": 3}, "iterations": {"min": 5, "max": 5}})
LINES = {
    Line.GROWTH: "growth", Line.WEIGHTS: "weights", Line.WEIGHTS_PREDICTED: "predicted", Line.KV_CACHE: "kv cache",
    Line.KV_CACHE_PREDICTED: "predicted", Line.ACTIVATIONS: "activations", Line.HEAP_FREE_LOADING: "kept free",
    Line.MAPPED: "files", Line.OTHER: "other", Line.UNEXPLAINED: "unexplained",
}  # fmt: skip


class NotMeasured(Exception):
    """A cell that ended in something else than a measurement."""


@dataclass(frozen=True)
class Account:
    """One cell's account; `unexplained` is the share of the growth that no line explains, signed."""

    batch_size: int
    quantization: str
    lines: dict[str, int | None]
    unexplained: float | None

    @property
    def explained(self) -> bool:
        return self.unexplained is not None and abs(self.unexplained) <= UNEXPLAINED

    @property
    def agrees(self) -> bool:
        """Cache and unquantized weights are what their formulas say; a quantization leaves layers alone, and adds scales."""
        judged = [Line.KV_CACHE, *([Line.WEIGHTS] if self.quantization in DTYPES else [])]
        pairs = [(self.lines.get(line), self.lines.get(PREDICTED[line])) for line in judged]
        return all(found and predicted and abs(found / predicted - 1) <= AGREEING for found, predicted in pairs)


@dataclass
class Process:
    """The cells of one process in the order they ran, and `released` over `baseline`."""

    model: str
    quantization: str
    cells: list[Account] = field(default_factory=list)
    baseline_bytes: int | None = None
    released_bytes: int | None = None

    @property
    def released(self) -> float | None:
        if self.baseline_bytes is None or self.released_bytes is None:
            return None
        return self.released_bytes / self.baseline_bytes

    @property
    def returned(self) -> bool:
        return self.released is not None and abs(self.released - 1) <= RELEASED


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    done, failed = [], False
    print("  ".join([f"{'model':24}", f"{'':5}", "batch", *(f"{title:>11}" for title in LINES.values()), "  share"]))
    with tempfile.TemporaryDirectory() as scratch:
        for model in options.model:
            for quantization in options.quantization:
                process = Process(model, quantization)
                try:
                    examine(process, options, Path(scratch))
                except NotMeasured as error:
                    failed = True
                    print(f"{model} {quantization}: {error}", file=sys.stderr)
                done.append(process)
    if options.json:
        report = [asdict(each) | {"released": each.released, "returned": each.returned} for each in done]
        options.json.write_text(json.dumps(report, indent=2))
    good = all(each.returned and all(cell.explained and cell.agrees for cell in each.cells) for each in done)
    return 2 if failed else int(not good)


def examine(process: Process, options: argparse.Namespace, scratch: Path) -> None:
    """Load the model in a fresh child, measure every batch size and close it. Raises NotMeasured."""
    device = detected("benchmark", with_cpu=True)[-1]
    spec = ChildSpec(device, sys.executable, scratch / "locks", scratch / "work", options.threads)
    child = Child.start(spec)
    try:
        opened = child.open(_opening(process, options, options.cache_dir or scratch / "cache"), DEADLINE_S)
        if not isinstance(opened, ChildRecord):
            raise NotMeasured(f"loading: {opened}")
        for batch_size in options.batch:
            run = Run(cell=_cell(process, options, batch_size), plan=PLAN)
            outcome = child.run(run, deadline_s=DEADLINE_S)
            if not isinstance(outcome, Measured):
                raise NotMeasured(f"batch {batch_size}: {outcome}")
            process.cells.append(_account(batch_size, process.quantization, outcome))
            print(_line(process), flush=True)
        record = child.close(DEADLINE_S)
    finally:
        child.kill()
    if record.baseline is not None and record.released is not None:
        process.baseline_bytes, process.released_bytes = record.baseline.ram_bytes, record.released.ram_bytes
    print(_released(process), flush=True)


def _opening(process: Process, options: argparse.Namespace, cache: Path) -> Open:
    return Open(
        cell=_cell(process, options, options.batch[0]), threads=options.threads, device="cpu",
        architecture=load().models[process.model].architecture, cache_dir=str(cache.absolute()),
    )  # fmt: skip


def _cell(process: Process, options: argparse.Namespace, batch_size: int) -> Cell:
    dtype = DTYPES.get(process.quantization, "float32")
    return Cell(
        model=process.model, weights="synthetic", quantization=process.quantization, dtype=dtype, engine="transformers",
        runtime="default", hardware="cpu", batch_size=batch_size, sequence_length=options.sequence,
        workload="synthetic", generate_tokens=options.tokens,
    )  # fmt: skip


def _account(batch_size: int, quantization: str, outcome: Measured) -> Account:
    lines = outcome.memory.account
    growth, unexplained = lines[Line.GROWTH], lines[Line.UNEXPLAINED]
    share = unexplained / growth if growth and unexplained is not None else None
    return Account(batch_size, quantization, dict(lines), share)


def _line(process: Process) -> str:
    cell = process.cells[-1]
    sizes = [cell.lines.get(name) for name in LINES]
    shown = [f"{'-' if size is None else format(size / 1e6, '.1f'):>11}" for size in sizes]
    share = "unknown" if cell.unexplained is None else f"{100 * cell.unexplained:6.1f}%"
    agrees = "" if cell.agrees else "not as predicted"
    return "  ".join(
        [f"{process.model:24}", f"{process.quantization:5}", f"{cell.batch_size:5}", *shown, share, agrees]
    )


def _released(process: Process) -> str:
    released = process.released
    said = "unknown" if released is None else f"{released:.3f} of baseline"
    return f"{process.model:24}  {process.quantization:5}  released: {said}"


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    models = sorted(load().models)
    parser.add_argument(
        "--model", nargs="+", default=["EleutherAI/pythia-70m", "facebook/opt-125m"], choices=models, metavar="MODEL"
    )
    parser.add_argument("--quantization", nargs="+", default=["fp32", "int8"], choices=[*DTYPES, "int8", "int4"])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--sequence", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--threads", type=int, default=threads(processors()))
    parser.add_argument("--cache-dir", type=Path, help="where synthetic weights are kept; default: a scratch folder")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there too, in bytes")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
