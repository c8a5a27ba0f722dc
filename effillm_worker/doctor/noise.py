"""The noise floor: the same small cell in one fresh process after the other, as every real cell is measured (A/A)."""

from __future__ import annotations

import contextlib
import io
import math
import statistics
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from effillm_server.contract.fingerprint import DeviceDeclaration
from effillm_server.contract.job import Cell, Lease
from effillm_server.contract.outcome import Measured, Phase
from effillm_server.contract.quantization import Quantization
from effillm_server.contract.sweep import Bounds, Engine, Isolation, MeasurementPlan, Weights
from effillm_server.contract.timeline import throughput_tok_s
from effillm_server.settings import Settings
from effillm_worker.bench import Bench

MODEL = "EleutherAI/pythia-70m"
FEWEST = 2
HOPE = "end other load, or give it more time with --measure"
CONFIDENCE = 0.95
# Long enough for the clock, short enough for several processes in a minute.
SEQUENCE, TOKENS, BATCH = 64, 16, 1
PLAN = MeasurementPlan(
    warmup=Bounds(min=3, max=4), iterations=Bounds(min=5, max=8), relative_half_width=0.02, time_limit_s=120
)


class NotMeasured(Exception):
    """Why there is no figure."""


@dataclass(frozen=True)
class Process:
    """One fresh process: mean throughput of its iterations, their relative standard deviation, the verdict on its conditions."""

    throughput_tok_s: float
    within_relative_sd: float
    iterations: int
    verdict: str
    reasons: tuple[str, ...]
    seconds: float


@dataclass(frozen=True)
class NoiseFloor:
    """Spread between processes. `relative_sd` is of ln(throughput) between processes, with its 95 % interval by chi-square.

    `noise_floor` is that of the ratio of two runs, sqrt(2) times as much: what two rows of one cell differ by without a cause.
    `within_relative_sd` pools the processes' own iterations, for comparison.
    """

    cell: str
    processes: tuple[Process, ...]
    relative_sd: float
    low: float
    high: float
    within_relative_sd: float

    @property
    def noise_floor(self) -> float:
        return math.sqrt(2) * self.relative_sd

    def document(self) -> dict[str, Any]:
        """As JSON."""
        root = math.sqrt(2)
        ratio = {"noise_floor": self.noise_floor, "noise_floor_ci95": [root * self.low, root * self.high]}
        document = asdict(self) | ratio | {"degrees": len(self.processes) - 1}
        return document | {"relative_sd_ci95": [document.pop("low"), document.pop("high")]}


def cell_of(device: DeviceDeclaration) -> Cell:
    """The cell that is measured again and again; on a GPU in half precision, as models run there."""
    quantization, dtype = (Quantization.FP32, "float32") if device.gpu_uuid is None else (Quantization.FP16, "float16")
    return Cell(
        model=MODEL, weights=Weights.SYNTHETIC, quantization=quantization, dtype=dtype, engine=Engine.TRANSFORMERS,
        runtime="default", hardware=device.hardware_class, batch_size=BATCH, sequence_length=SEQUENCE, workload="synthetic",
        generate_tokens=TOKENS,
    )  # fmt: skip


def measure(
    device: DeviceDeclaration, settings: Settings, until: float, most: int, say: Callable[[str], None]
) -> NoiseFloor:
    """A/A runs until `until` (monotonic) or `most` of them, as many as fit. Raises NotMeasured for fewer than two."""
    done: list[Process] = []
    while len(done) < most:
        left = until - time.monotonic()
        # A process that probably will not come to its end in time is not begun.
        if left <= 0 or (done and left < 1.1 * max(process.seconds for process in done)):
            break
        process = one_process(device, settings, left)
        if isinstance(process, str):
            if len(done) < FEWEST:
                raise NotMeasured(process)
            break
        done.append(process)
        say(f"process {len(done)}: {process.throughput_tok_s:.2f} tok/s, {process.verdict}, {process.seconds:.0f} s")
    if len(done) < FEWEST:
        raise NotMeasured(f"only {len(done)} of at least {FEWEST} processes came to an end in the time: {HOPE}")
    return summary(done, describe(cell_of(device)))


def one_process(device: DeviceDeclaration, settings: Settings, within_s: float) -> Process | str:
    """One fresh process by the path of every job, or why it measured nothing. Ended when the time is over."""
    begin = time.monotonic()
    plan = PLAN.model_copy(update={"time_limit_s": max(PLAN.time_limit_s, within_s)})
    lease = Lease(
        job_id=1, sweep_id="doctor", fence=1, device_id=device.id, attempt=1, cell=cell_of(device), plan=plan,
        load_group=uuid.uuid4().hex[:16], isolation=Isolation.CELL, fresh_child=True, ttl_s=max(within_s, 1.0),
    )  # fmt: skip
    bench, over = Bench(device, settings, lambda _: None), threading.Event()

    def end_it() -> None:
        # The bench cancels only what it measures already, and the time may be over before that.
        while not over.wait(0.02) and not bench.cancel(lease.job_id, lease.fence):
            pass

    alarm = threading.Timer(within_s, end_it)
    alarm.daemon = True
    alarm.start()
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # the worker's log lines are for a service, not for people
            outcome = bench.measure(lease)
    finally:
        over.set()
        alarm.cancel()
        bench.discard()
    if not isinstance(outcome, Measured):
        return getattr(outcome, "message", f"a process took longer than the {within_s:.0f} s that were left: {HOPE}")
    counted = [
        throughput_tok_s(sample.timestamps_ns, BATCH)
        for sample in outcome.samples
        if sample.phase is Phase.MEASURED and not sample.outlier
    ]
    mean = statistics.fmean(counted)
    spread = statistics.stdev(counted) / mean
    return Process(mean, spread, len(counted), outcome.verdict, outcome.reasons, time.monotonic() - begin)


def summary(processes: Sequence[Process], cell: str) -> NoiseFloor:
    """Spread between at least two processes: standard deviation of the logarithms, interval by the chi-square distribution."""
    sd = statistics.stdev(math.log(process.throughput_tok_s) for process in processes)
    low, high = interval(sd, len(processes) - 1)
    freedom = [process.iterations - 1 for process in processes]
    squares = sum(n * process.within_relative_sd**2 for n, process in zip(freedom, processes, strict=True))
    within = math.sqrt(squares / sum(freedom))
    return NoiseFloor(cell, tuple(processes), sd, low, high, within)


def interval(sd: float, degrees: int) -> tuple[float, float]:
    """95 % interval of a standard deviation with so many degrees of freedom, of normal values."""
    from scipy.stats import chi2  # takes a second, and --quick needs none of it

    tail = (1 - CONFIDENCE) / 2
    low, high = (sd * math.sqrt(degrees / float(chi2.ppf(quantile, degrees))) for quantile in (1 - tail, tail))
    return low, high


def describe(cell: Cell) -> str:
    """The cell in one phrase."""
    return (
        f"{cell.model} {cell.quantization}, synthetic weights, batch {cell.batch_size}, {cell.sequence_length} prompt and "
        f"{cell.generate_tokens} generated tokens"
    )
