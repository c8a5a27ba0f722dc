"""The probe overhead: how much longer EffiLLM's own iterations take than a bare loop around the same loaded model."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from effillm_server.contract.fingerprint import DeviceDeclaration
from effillm_server.settings import Settings
from effillm_worker.doctor.noise import HOPE, NotMeasured, cell_of, describe
from effillm_worker.isolate import lock_file
from effillm_worker.paired import Arm, ArmEnded, Ratio, arm
from effillm_worker.supervisor import take_lock

BLOCK = 2
FEWEST_PAIRS = 6
MOST_PAIRS = 200
HALF_WIDTH = 0.01
LIMIT = 0.01
SAY_EVERY_S = 10.0


@dataclass(frozen=True)
class Overhead:
    """Wall time of EffiLLM's iterations over the bare loop's, less 1. Undecided while the half-width exceeds 1 %."""

    cell: str
    pairs: int
    ratio: Ratio

    @property
    def verdict(self) -> str:
        """`undecided`, `below 1 %` or `above 1 %`."""
        if self.pairs < FEWEST_PAIRS or self.ratio.half_width > HALF_WIDTH:
            return "undecided"
        return "below 1 %" if self.ratio.mean - 1 < LIMIT else "above 1 %"

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "cell": self.cell,
            "pairs": self.pairs,
            "overhead": self.ratio.mean - 1,
            "overhead_ci95": [self.ratio.low - 1, self.ratio.high - 1],
            "half_width": self.ratio.half_width,
            "verdict": self.verdict,
        }


def measure(device: DeviceDeclaration, settings: Settings, until: float, say: Callable[[str], None]) -> Overhead:
    """Pairs until the ratio is decided or `until` (monotonic) has come. Raises NotMeasured."""
    lock = take_lock(lock_file(settings.lock_dir, device.id), f"device {device.id}, measuring its probe overhead")
    if isinstance(lock, str):
        raise NotMeasured(f"the device is held by another process ({lock}): wait for its end")
    cell, cache = cell_of(device), (settings.data_dir / "cache").absolute()
    cache.mkdir(parents=True, exist_ok=True)
    logarithms: list[float] = []
    try:
        with arm(device, cell, cache, keep=(lock,)) as both:
            alarm = threading.Timer(max(0.0, until - time.monotonic()), both.kill)
            alarm.daemon = True
            alarm.start()
            try:
                _pairs(both, logarithms, until, say, describe(cell))
            finally:
                alarm.cancel()
    except ArmEnded as error:
        if time.monotonic() < until:
            raise NotMeasured(f"the process with the model ended: {error}") from None
    finally:
        os.close(lock)
    if len(logarithms) < 2:
        raise NotMeasured(f"{len(logarithms)} pairs came to an end in the time: {HOPE}")
    return Overhead(describe(cell), len(logarithms), Ratio.of(logarithms))


def _pairs(both: Arm, logarithms: list[float], until: float, say: Callable[[str], None], cell: str) -> None:
    """Add pairs to `logarithms`; what was added stays when the time ends in the middle of one."""
    both.ask("")
    told = time.monotonic()
    while len(logarithms) < MOST_PAIRS:
        begin = time.monotonic()
        session, bare = both.pair(len(logarithms), BLOCK)
        logarithms.append(math.log(session["wall_s"] / bare["wall_s"]))
        now = time.monotonic()
        if len(logarithms) > 1:
            so_far = Overhead(cell, len(logarithms), Ratio.of(logarithms))
            if so_far.verdict != "undecided":
                return
            if now - told > SAY_EVERY_S:
                told = now
                say(f"{so_far.pairs} pairs: {interval(so_far)}")
        if now + 1.1 * (now - begin) > until:
            return


def interval(overhead: Overhead) -> str:
    """The overhead with its interval, in per cent."""
    ratio = overhead.ratio
    return f"{100 * (ratio.mean - 1):+.2f} % (95 % interval {100 * (ratio.low - 1):+.2f} to {100 * (ratio.high - 1):+.2f} %)"
