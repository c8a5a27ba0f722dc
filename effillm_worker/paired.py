"""EffiLLM's own iterations beside a bare loop around the same loaded model: what measuring costs, as a paired ratio.

One process holds the model and alternates blocks of the two, so both share its luck and the machine's weather; this process
watches conditions during EffiLLM's blocks, as in production.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from effillm_server.catalog import load
from effillm_server.contract.fingerprint import DeviceDeclaration
from effillm_server.contract.job import Cell
from effillm_worker.environment import child_environment
from effillm_worker.fingerprint import threads
from effillm_worker.measure.channel import COMMAND_FD, COUNTER_BYTES, PROGRESS_FD, REPORT_FD
from effillm_worker.measure.student import half_width
from effillm_worker.witness import Instruments

ARM = "effillm_worker.measure.paired"

Block = dict[str, float]


class ArmEnded(Exception):
    """The process with the model ended before it had answered; the message is its last word."""


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
        """From the logarithms of the pairs' ratios, by Student's t."""
        middle, half = statistics.fmean(logarithms), half_width(logarithms)
        return cls(math.exp(middle), math.exp(middle - half), math.exp(middle + half))


@dataclass(frozen=True)
class Arm:
    """The process with the loaded model. `ask` sends it one line of `effillm_worker.measure.paired` and waits for the answer."""

    process: subprocess.Popen[str]
    ask: Callable[[str], Block]
    instruments: Instruments

    def pair(self, number: int, block: int) -> tuple[Block, Block]:
        """Throughput and wall time of a block of EffiLLM's iterations and of one of the bare loop, in this order.

        Which is run first alternates with `number`. Conditions are watched during EffiLLM's block only, as in production.
        """
        found: dict[str, Block] = {}
        for kind in ("session", "bare") if number % 2 else ("bare", "session"):
            watch = self.instruments.watch(self.process.pid, self.instruments.energy())
            if kind == "session":
                watch.open()
            try:
                found[kind] = self.ask(f"{kind} {block}")
            finally:
                watch.close()
        return found["session"], found["bare"]

    def first_tokens(self, number: int, count: int) -> tuple[float, float, float]:
        """Median seconds to the first token by EffiLLM and by the bare loop, over `count` neighbours of each, both watched.

        The third: until the bare loop's generation of one token has come back.
        """
        watch = self.instruments.watch(self.process.pid, self.instruments.energy())
        watch.open()
        try:
            medians = self.ask(f"{'session' if number % 2 else 'bare'}-first {count}")
        finally:
            watch.close()
        return medians["session"], medians["bare"], medians["bare_wall"]

    def kill(self) -> None:
        """End it now; whoever waits for an answer gets ArmEnded."""
        self.process.kill()


@contextmanager
def arm(
    device: DeviceDeclaration, cell: Cell, cache_dir: Path, use_threads: int | None = None, keep: Sequence[int] = ()
) -> Iterator[Arm]:
    """The process with the model, not yet loaded: ask it "" to wait for that. `keep`: descriptors it inherits, such as a lock."""
    count = use_threads or threads(device.processors)
    order = {
        "cell": cell.model_dump(mode="json"),
        "threads": count,
        "device": "cuda" if device.gpu_uuid else "cpu",
        "cache_dir": str(cache_dir),
        "architecture": load().models[cell.model].architecture,
    }
    command, commands = os.pipe()
    reports, report = os.pipe()
    progress = os.memfd_create("progress")
    os.ftruncate(progress, COUNTER_BYTES)
    descriptors = {COMMAND_FD: str(command), REPORT_FD: str(report), PROGRESS_FD: str(progress)}
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", ARM, json.dumps(order)], env=child_environment(count, device.gpu_uuid, descriptors),
            pass_fds=(command, report, progress, *keep), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
        )  # fmt: skip
        for descriptor in (command, report, progress):
            os.close(descriptor)
        drain = threading.Thread(target=_drain, args=(reports,))
        drain.start()

        def ask(line: str) -> Block:
            assert process.stdin and process.stdout
            try:
                if line:
                    process.stdin.write(line + "\n")
                    process.stdin.flush()
                answer = process.stdout.readline()
            except BrokenPipeError:
                answer = ""
            if not answer:
                code = process.wait()
                log.seek(0)
                raise ArmEnded((log.read().strip().splitlines() or [f"it ended with code {code}"])[-1])
            block: Block = json.loads(answer)
            return block

        try:
            yield Arm(process, ask, Instruments.of(device))
        except BaseException:
            process.kill()
            raise
        finally:
            process.communicate()
            os.close(commands)
            drain.join()


def _drain(descriptor: int) -> None:
    """Read the child's reports and drop them, as a parent would take them."""
    with os.fdopen(descriptor, "rb") as reports:
        while reports.readline():
            pass
