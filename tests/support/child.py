"""The measuring child as a real process with real pipes, driven message by message."""

from __future__ import annotations

import mmap
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from effillm_server.contract.job import Cell
from effillm_server.contract.sweep import MeasurementPlan
from effillm_worker.messages import REPORT, Acknowledge, Command, Open, Report, Run, Stage

REPOSITORY = Path(__file__).resolve().parents[2]
PATIENCE_S = 240.0
TINY_NEOX: dict[str, Any] = {
    "model_type": "gpt_neox",
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "eos_token_id": 0,
    "bos_token_id": 0,
    "tie_word_embeddings": False,
}
QUICK_PLAN = MeasurementPlan.model_validate({"warmup": 3, "iterations": 5})

R = TypeVar("R")


class ChildProcess:
    """One child. `answer` serves its stages until it says something of the kind asked for."""

    def __init__(self, process: subprocess.Popen[bytes], commands: int, reports: int, counter: mmap.mmap) -> None:
        self.process = process
        self.heard: list[Report] = []
        self._commands = commands
        self._reports = reports
        self._counter = counter
        self._buffer = b""

    @property
    def tokens(self) -> int:
        """What the shared progress counter says."""
        return int.from_bytes(self._counter[:8], "little")

    def say(self, command: Command) -> None:
        os.write(self._commands, command.model_dump_json().encode() + b"\n")

    def hang_up(self) -> None:
        """Close the command pipe."""
        os.close(self._commands)
        self._commands = -1

    def next(self) -> Report | None:
        """The next report, None at the end of the pipe."""
        deadline = time.monotonic() + PATIENCE_S
        while b"\n" not in self._buffer:
            readable, _, _ = select.select([self._reports], [], [], max(0.0, deadline - time.monotonic()))
            if not readable:
                raise TimeoutError(f"the child said nothing for {PATIENCE_S:g} s")
            data = os.read(self._reports, 1 << 16)
            if not data:
                return None
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        report = REPORT.validate_json(line)
        self.heard.append(report)
        return report

    def answer(self, kind: type[R] | tuple[type[R], ...]) -> R:
        """Acknowledge stages until a report of this kind; any end before it fails the test."""
        while (report := self.next()) is not None:
            if isinstance(report, kind):
                return report
            if isinstance(report, Stage):
                self.say(Acknowledge())
        raise AssertionError(f"the child ended without a {kind}; heard {self.heard[-3:]}")

    def stages(self) -> list[str]:
        return [report.stage for report in self.heard if isinstance(report, Stage)]

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for descriptor in (self._commands, self._reports):
            if descriptor >= 0:
                os.close(descriptor)
        self._counter.close()


@contextmanager
def child_process(interpreter: str = sys.executable, **environment: str) -> Iterator[ChildProcess]:
    """A running child; killed at the end whatever happened. Its own output is thrown away."""
    command, commands = os.pipe()
    reports, report = os.pipe()
    progress = os.memfd_create("progress")
    os.ftruncate(progress, 8)
    counter = mmap.mmap(progress, 8)
    inherited = {
        "EFFILLM_COMMAND_FD": str(command),
        "EFFILLM_REPORT_FD": str(report),
        "EFFILLM_PROGRESS_FD": str(progress),
    }
    process = subprocess.Popen(
        [interpreter, "-m", "effillm_worker"],
        pass_fds=(command, report, progress),
        env={**os.environ, "HF_HUB_OFFLINE": "1", **inherited, **environment},
        cwd=REPOSITORY,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    for descriptor in (command, report, progress):
        os.close(descriptor)
    child = ChildProcess(process, commands, reports, counter)
    try:
        yield child
    finally:
        child.close()


def opening(cell: Cell, cache_dir: Path, **changes: Any) -> Open:
    """Open for a tiny GPT-NeoX unless told otherwise; one thread, so that a loaded machine does not stretch it."""
    values: dict[str, Any] = {"threads": 1, "device": "cpu", "architecture": TINY_NEOX, "cache_dir": str(cache_dir)}
    return Open(cell=cell, **(values | changes))


def run(cell: Cell, plan: MeasurementPlan = QUICK_PLAN) -> Run:
    return Run(cell=cell, plan=plan)
