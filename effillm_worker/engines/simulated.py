"""The engine `simulated`: declared time and memory instead of a model, for test clusters and runs at scale.

Everything it reports follows from the cell alone, so two runs agree to the nanosecond, and every record carries
`simulated`. Time is virtual: a generation advances a clock of its own by a roofline of the declared hardware and really
waits about a millisecond, so a cell is over in well under 0.2 s. A cell whose declared time exceeds its time limit is
refused like any other. Memory is the arithmetic of weights and cache against
the memory the catalog states for the hardware class.

A model id `simulated/<fault>` declares a fault instead:

| id | what happens |
|---|---|
| `simulated/oom-above-N` | out of device memory once batch x (prompt + generated) tokens exceed N |
| `simulated/host-oom-above-N` | out of host memory likewise |
| `simulated/unsupported` | the load is refused as unsupported |
| `simulated/fail` | the first generation raises an error that is no answer |
| `simulated/crash` | the first generation ends the process by SIGABRT |
| `simulated/exit` | the first generation ends the process with exit code 3 |
| `simulated/hang` | the first generation never makes progress |
| `simulated/stall` | the first generation makes progress for half of its tokens, then never again |
| `simulated/hang-loading` | the load never ends |
| `simulated/ignore-term` | ignores SIGTERM, then hangs |
| `simulated/orphan` | starts a process of its own session that outlives this one if it can, then hangs |
| `simulated/flood` | writes 64 MB to standard output and error, then measures |
| `simulated/slow-S` | every token really takes S seconds: progress without an end in sight |
| `simulated/slow-load-S` | loading really takes S seconds |

Any other id measures: with its size from the catalog, `simulated/N` with N million parameters, else one drawn from the id.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NoReturn

from effillm_server import catalog
from effillm_server.contract.job import Cell
from effillm_server.contract.outcome import InfeasibleReason, LoadedModel
from effillm_server.contract.quantization import bits_of
from effillm_server.contract.units import format_bytes
from effillm_worker.engines.base import Batch, Environment, LoadRequest, OutOfMemory, Unsupported

BITS = {"int4": 4.5, "gptq": 4.25}  # with the scales of the methods' own defaults
REAL_WAIT_S = 0.001
JITTER = 0.004
VOCABULARY = 32_000
KV_BYTES_PER_TOKEN = 2 * 24 * 2048 * 2
NS = 1_000_000_000


@dataclass(frozen=True)
class Machine:
    """A declared device: bytes and operations per second it moves, seconds a step costs beside."""

    bandwidth: float
    operations: float
    overhead_s: float


MACHINES = {
    "a100": Machine(1.5e12, 150e12, 0.008),
    "a10": Machine(0.6e12, 60e12, 0.010),
    "rtx-4090": Machine(1.0e12, 160e12, 0.006),
    "rtx-3080": Machine(0.76e12, 60e12, 0.007),
    "t4": Machine(0.3e12, 30e12, 0.015),
    "cpu": Machine(0.04e12, 0.5e12, 0.004),
}
OTHER_MACHINE = Machine(0.5e12, 50e12, 0.010)


class SimulatedEngine:
    """A model that exists by declaration only."""

    simulated = True

    def start(self, request: LoadRequest) -> Environment:
        self._cell = request.cell
        self._fault = request.cell.model.removeprefix("simulated/") if "simulated/" in request.cell.model else ""
        self._machine = MACHINES.get(request.cell.hardware, OTHER_MACHINE)
        self._now_ns = 0
        self._generations = 0
        self._peak = self._in_use = 0
        return Environment(blas=None, threads={"intra_op": request.threads, "inter_op": 1})

    def load(self, request: LoadRequest) -> LoadedModel:
        if self._fault == "unsupported":
            raise Unsupported("the simulated model declares itself unsupported")
        if self._fault == "hang-loading":
            _hang()
        time.sleep(self._seconds("slow-load") or REAL_WAIT_S)
        self._parameters = parameters(request.cell.model)
        bits = _bits(request.cell.quantization)
        self._weight_bytes = round(self._parameters * bits / 8)
        self._occupy(0)
        return LoadedModel(
            parameters=self._parameters,
            weight_bytes=self._weight_bytes,
            bits_per_weight=bits,
            dtype=request.cell.dtype,
            kernels={"Simulated": 1},
        )

    def ordinary_tokens(self) -> Sequence[int]:
        return range(VOCABULARY)

    def encode(self, prompts: Sequence[str]) -> list[list[int]]:
        return [list(prompt.encode()) for prompt in prompts]

    def batch(self, prompts: Sequence[Sequence[int]]) -> Batch:
        lengths = tuple(len(prompt) for prompt in prompts)
        return Batch(None, sum(lengths), lengths)

    def generate(self, batch: Batch, tokens: int, mark: Callable[[], None]) -> None:
        self._generations += 1
        self._declared_fault(batch, tokens)
        size, longest = len(batch.lengths), max(batch.lengths)
        self._occupy(KV_BYTES_PER_TOKEN * size * (longest + tokens))
        time.sleep(REAL_WAIT_S)
        each = self._seconds("slow")
        for token in range(1, tokens + 1):
            seconds = self._prefill_s(batch) if token == 1 else self._step_s(size, longest + token)
            self._now_ns += max(1, round(seconds * (1 + self._jitter(token)) * NS))
            time.sleep(each)
            mark()
            if self._fault == "stall" and 2 * token >= tokens:
                _hang()
        self._in_use = self._weight_bytes

    def mark(self) -> int:
        return self._now_ns

    def resolve(self, marks: Sequence[Any]) -> list[int]:
        return list(marks)

    def synchronize(self) -> None:
        """Nothing runs beside this process."""

    def allocator(self) -> dict[str, int]:
        if self._cell.hardware == "cpu" or not self._in_use:
            return {}
        return {
            "allocated": self._in_use,
            "reserved": self._in_use,
            "peak_allocated": self._peak,
            "peak_reserved": self._peak,
        }

    def reset_peak(self) -> None:
        self._peak = self._in_use

    def each_operation(self, then: Callable[[], None]) -> AbstractContextManager[None]:
        return nullcontext()  # there are none

    def kv_cache_bytes(self, batch_size: int, tokens: int) -> int | None:
        return KV_BYTES_PER_TOKEN * batch_size * tokens

    def context_window(self) -> int | None:
        facts = catalog.load().models.get(self._cell.model)
        return None if facts is None else facts.context_window

    def unload(self) -> None:
        self._in_use = 0

    def _prefill_s(self, batch: Batch) -> float:
        compute = 2 * self._parameters * batch.prompt_tokens / self._machine.operations
        return self._machine.overhead_s + max(compute, self._weight_bytes / self._machine.bandwidth)

    def _step_s(self, batch_size: int, context: int) -> float:
        moved = self._weight_bytes + KV_BYTES_PER_TOKEN * batch_size * context
        compute = 2 * self._parameters * batch_size / self._machine.operations
        return self._machine.overhead_s + max(compute, moved / self._machine.bandwidth)

    def _jitter(self, token: int) -> float:
        """Between -JITTER and JITTER, drawn from the cell, the generation and the token."""
        seed = f"{_identity(self._cell)}|{self._generations}|{token}"
        return JITTER * (2 * _fraction(seed) - 1)

    def _occupy(self, cache_bytes: int) -> None:
        """Take memory for weights and cache. Raises OutOfMemory beyond what the catalog states for the class."""
        facts = catalog.load().hardware.get(self._cell.hardware)
        memory = None if facts is None else facts.memory_bytes
        needed = self._weight_bytes + cache_bytes
        if memory is not None and needed > memory:
            side = InfeasibleReason.OUT_OF_HOST_MEMORY if facts and facts.kind == "cpu" else (
                InfeasibleReason.OUT_OF_DEVICE_MEMORY
            )  # fmt: skip
            raise OutOfMemory(side, f"simulated: {format_bytes(needed)} needed, the device has {format_bytes(memory)}")
        self._in_use = needed
        self._peak = max(self._peak, needed)

    def _seconds(self, fault: str) -> float:
        found = re.fullmatch(rf"{fault}-([0-9.]+)", self._fault)
        return float(found[1]) if found else 0.0

    def _declared_fault(self, batch: Batch, tokens: int) -> None:
        _memory_fault(self._fault, len(batch.lengths) * (max(batch.lengths) + tokens))
        if self._generations > 1:
            return
        if action := FAULTS.get(self._fault):
            action()


def parameters(model: str) -> int:
    """Parameters the simulated engine takes a model to have."""
    if facts := catalog.load().models.get(model):
        return facts.parameters or round(1e9)
    if millions := re.fullmatch(r"simulated/([0-9]+)", model):
        return int(millions[1]) * 1_000_000
    return round(50e6 * math.pow(40, _fraction(model)))


def _memory_fault(fault: str, tokens: int) -> None:
    found = re.fullmatch(r"(host-)?oom-above-([0-9]+)", fault)
    if found is None or tokens <= int(found[2]):
        return
    side = InfeasibleReason.OUT_OF_HOST_MEMORY if found[1] else InfeasibleReason.OUT_OF_DEVICE_MEMORY
    raise OutOfMemory(side, f"simulated: {tokens} tokens, the declared limit is {found[2]}")


def _hang() -> NoReturn:
    while True:
        signal.pause()


def _fail() -> NoReturn:
    raise RuntimeError("the simulated model declares an error that is no answer")


def _ignore_term() -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _hang()


def _orphan() -> NoReturn:
    subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"], start_new_session=True)
    _hang()


def _flood() -> None:
    line = b"junk that no parent should ever have to read " * 20 + b"\n"
    for descriptor in (1, 2):
        for _ in range(32 * 2**20 // len(line)):
            os.write(descriptor, line)


FAULTS: dict[str, Callable[[], None]] = {
    "fail": _fail,
    "crash": os.abort,
    "exit": lambda: os._exit(3),
    "hang": _hang,
    "ignore-term": _ignore_term,
    "orphan": _orphan,
    "flood": _flood,
}


def _identity(cell: Cell) -> str:
    return "|".join(map(str, (cell.model, cell.quantization, cell.hardware, cell.repeat)))


def _fraction(text: str) -> float:
    """A number in 0..1 that the text alone decides."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48


def _bits(label: str) -> float:
    bits = BITS.get(label) or bits_of(label)
    if bits is None:
        raise Unsupported(
            f"the simulated engine declares no weights for {label}: their bits follow from a plan or a checkpoint"
        )
    return bits
