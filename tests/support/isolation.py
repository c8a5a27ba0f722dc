"""Specs, commands and cells for tests of the measuring child."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from effillm_server.contract.fingerprint import DeviceDeclaration, Hardware, Processor
from effillm_server.contract.job import Cell
from effillm_server.contract.quantization import Quantization
from effillm_server.contract.sweep import Engine, MeasurementPlan, Weights
from effillm_worker.isolate import Child, ChildSpec
from effillm_worker.messages import Open, Run

CELL = Cell(
    model="facebook/opt-125m", weights=Weights.SYNTHETIC, quantization=Quantization.FP32, dtype="float32",
    engine=Engine.TRANSFORMERS, runtime="default", hardware="cpu", batch_size=1, sequence_length=8, workload="synthetic",
    generate_tokens=2,
)  # fmt: skip


def device(name: str = "box-cpu", **changes: Any) -> DeviceDeclaration:
    """A processor device of this machine."""
    processor = Processor(model="p", architecture="x86_64", sockets=1, physical_cores=2, logical_cores=2, numa_nodes=1)
    hardware = Hardware(hardware_class="cpu", processor=processor, memory_bytes=2**34)
    fields: dict[str, Any] = {
        "id": name, "hardware_class": "cpu", "node": "box", "memory_bytes": 2**34, "hardware": hardware,
    }  # fmt: skip
    return DeviceDeclaration(**(fields | changes))


def spec(folder: Path, behaviour: str, **changes: Any) -> ChildSpec:
    """A child that behaves as named, its lock and its working directory below `folder`."""
    fields: dict[str, Any] = {
        "device": device(),
        "interpreter": sys.executable,
        "lock_dir": folder / "locks",
        "work_dir": folder / "work",
        "threads": 1,
        "command": (sys.executable, "-m", "tests.support.children.play", behaviour),
        "load_group": "group",
    }
    return ChildSpec(**(fields | changes))


def opening() -> Open:
    return Open(cell=CELL, threads=1, device="cpu", cache_dir="cache")


def run(**plan: Any) -> Run:
    return Run(cell=CELL, plan=MeasurementPlan(**plan))


@contextmanager
def started(folder: Path, behaviour: str, **changes: Any) -> Iterator[Child]:
    """A started child that is gone afterwards whatever the test did."""
    child = Child.start(spec(folder, behaviour, **changes))
    try:
        yield child
    finally:
        child.kill()


@contextmanager
def opened(folder: Path, behaviour: str, **changes: Any) -> Iterator[Child]:
    """The same with its model loaded."""
    with started(folder, behaviour, **changes) as child:
        child.open(opening(), deadline_s=30)
        yield child


def is_running(pid: int) -> bool:
    """Whether this process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def await_true(claim: Callable[[], bool], seconds: float, what: str) -> None:
    """Block until `claim` holds; fails naming `what` when it does not in time."""
    until = time.monotonic() + seconds
    while not claim():
        if time.monotonic() > until:
            raise AssertionError(f"{what}: not within {seconds:g} s")
        os.sched_yield()
        time.sleep(0.01)
