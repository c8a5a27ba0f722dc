"""What a device can do at most: copy bandwidth and matrix rate per dtype, measured here, a few seconds at most.

`python -m effillm_worker.meters.ceiling --device cpu --threads 2` prints one JSON line on standard output, and unless
`--json` is given a table for people on standard error.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from effillm_worker.engines.clock import Clock, EventClock, ProcessorClock

if TYPE_CHECKING:
    import torch

# `int8` is the product that int8 kernels are built on: 8-bit factors, summed in 32 bits.
DTYPES = ("float32", "float16", "bfloat16", "int8")
COPY_BYTES = 2**28  # far beyond any last-level cache, well below any device's memory
SMALLEST_COPY = 2**24
LARGEST_MATRIX = 8192
LONG_ENOUGH_S = 0.02
SECONDS_EACH = 0.6
NS = 1e-9


@dataclass(frozen=True)
class Ceiling:
    """Best rates seen. A copy of n bytes moves 2 n: it reads and writes. A product of n x n matrices takes 2 n^3 operations."""

    device: str
    threads: int
    copy_bytes_s: float
    copy_size_bytes: int
    matmul_flop_s: dict[str, float] = field(default_factory=dict)
    matmul_sizes: dict[str, int] = field(default_factory=dict)
    not_measured: dict[str, str] = field(default_factory=dict)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; 0."""
    parser = argparse.ArgumentParser(prog="python -m effillm_worker.meters.ceiling", description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=_positive, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", action="store_true", help="nothing but the JSON line")
    chosen = parser.parse_args(arguments)
    found = measure(chosen.device, chosen.threads)
    if not chosen.json:
        print(f"copy      {found.copy_bytes_s / 1e9:10.1f} GB/s", file=sys.stderr)
        for dtype, rate in found.matmul_flop_s.items():
            print(f"{dtype:9} {rate / 1e9:10.1f} Gflop/s", file=sys.stderr)
    print(json.dumps(asdict(found)))
    return 0


def measure(device: str, threads: int, *, seconds_each: float = SECONDS_EACH) -> Ceiling:
    """The ceiling of this process's device with this many threads."""
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(threads)
    import torch

    torch.set_num_threads(threads)
    rig = _Rig(torch.device(device), _clock(torch, device), seconds_each)
    copied, copy_rate = _copy(rig, torch)
    rates: dict[str, float] = {}
    sizes: dict[str, int] = {}
    missing: dict[str, str] = {}
    for name in DTYPES:
        try:
            sizes[name], rates[name] = _matmul(rig, torch, getattr(torch, name))
        except RuntimeError as error:  # a device without this dtype's products says so by a RuntimeError
            missing[name] = str(error).partition("\n")[0]
    return Ceiling(device, threads, copy_rate, copied, rates, sizes, missing)


@dataclass(frozen=True)
class _Rig:
    device: torch.device
    clock: Clock
    seconds: float

    def best_s(self, work: Callable[[], Any]) -> float:
        """Shortest time of one call, over as many as fit into the time given, at least three, after one to warm up."""
        self.once_s(work)
        end, best, calls = time.monotonic() + self.seconds, float("inf"), 0
        while calls < 3 or time.monotonic() < end:
            best = min(best, self.once_s(work))
            calls += 1
        return best

    def once_s(self, work: Callable[[], Any]) -> float:
        self.clock.synchronize()
        begin = self.clock.mark()
        work()
        end = self.clock.mark()
        self.clock.synchronize()
        first, last = self.clock.resolve([begin, end])
        return max(last - first, 1) * NS


def _copy(rig: _Rig, torch: Any) -> tuple[int, float]:
    """Bytes copied and bytes moved per second; a smaller copy where the device has no room for the usual one."""
    size = COPY_BYTES
    while True:
        try:
            source = torch.ones(size, dtype=torch.uint8, device=rig.device)
            target = torch.empty_like(source)
            return size, 2 * size / rig.best_s(partial(target.copy_, source))
        except RuntimeError:
            if size <= SMALLEST_COPY:
                raise
            size //= 2


def _matmul(rig: _Rig, torch: Any, dtype: torch.dtype) -> tuple[int, float]:
    """Side of the square matrices and operations per second: sides double until one product lasts long enough to time."""
    size = 256
    while True:
        left = torch.ones(size, size, dtype=dtype, device=rig.device)
        right = torch.ones_like(left)
        is_whole = dtype is torch.int8
        out = torch.empty_like(left, dtype=torch.int32 if is_whole else dtype)
        product = partial(torch._int_mm if is_whole else torch.matmul, left, right, out=out)
        rig.once_s(product)
        if rig.once_s(product) >= LONG_ENOUGH_S or size >= LARGEST_MATRIX:
            return size, 2 * size**3 / rig.best_s(product)
        size *= 2


def _clock(torch: Any, device: str) -> Clock:
    if device == "cpu":
        return ProcessorClock()
    return EventClock(lambda: torch.cuda.Event(enable_timing=True), torch.cuda.synchronize)


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number of threads, at least 1, found {text!r}")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
