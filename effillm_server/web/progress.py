"""How far a sweep is, how fast, and how long it may still take: from its counters alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from effillm_server.api.views import SweepSummary

# These took a device's time; the other infeasible ones were known beforehand.
RAN_INTO = ("out_of_device_memory", "out_of_host_memory", "time_limit")


@dataclass(frozen=True)
class Progress:
    """`per_minute` is the rate of the devices at work now; `left_s` what is open at that rate; None: cannot be told."""

    done: int
    total: int
    per_minute: float | None
    left_s: float | None

    @property
    def share(self) -> float:
        return self.done / self.total if self.total else 1.0

    @property
    def is_over(self) -> bool:
        return self.done == self.total


def progress(sweep: SweepSummary) -> Progress:
    """Progress by the mean device time of the jobs that ran, and the devices that hold one now."""
    counts: Mapping[Any, int] = sweep.counts
    running, waiting = counts.get("leased", 0), counts.get("pending", 0)
    ran = counts.get("measured", 0) + counts.get("failed", 0) + sum(sweep.reasons.get(why, 0) for why in RAN_INTO)
    done = sweep.total - running - waiting
    if not ran or not running or not sweep.device_seconds:
        return Progress(done, sweep.total, None, None)
    # What runs now is taken for half done: its time so far is in the sum.
    mean_s = sweep.device_seconds / (ran + running / 2)
    return Progress(done, sweep.total, 60 * running / mean_s, (waiting + running / 2) * mean_s / running)


def parts(sweep: SweepSummary, width: float = 100.0) -> list[tuple[str, float, float]]:
    """The bar of a sweep: state, where it begins and how long it is."""
    counts: Mapping[Any, int] = sweep.counts
    found, at = [], 0.0
    for state in ("measured", "infeasible", "failed", "cancelled", "leased"):
        share = width * counts.get(state, 0) / sweep.total if sweep.total else 0.0
        if share:
            found.append((state, round(at, 3), round(share, 3)))
            at += share
    return found
