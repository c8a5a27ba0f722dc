"""What went on around the measurement, watched from outside the child while its window is open, once a second."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from effillm_server.contract.outcome import Conditions
from effillm_worker.meters import host
from effillm_worker.meters.energy import EnergyMeter
from effillm_worker.meters.gpu import GpuSample, GpuWatch

PERIOD_S = 1.0
SHORTEST_S = 0.5  # a shorter stretch between two readings says nothing about its worst second


@dataclass(frozen=True)
class Reading:
    """One look: the machine, the child's tree and the GPU at one moment."""

    at_s: float
    cpu: host.CpuTimes
    tree_ticks: int
    tree_swap_bytes: int
    swapped_pages: int | None
    clock_mhz: float | None
    throttle_events: int | None
    gpu: GpuSample | None = None


@dataclass
class Stretch:
    """One open window: its readings and every process's processor time at both ends."""

    readings: list[Reading] = field(default_factory=list)
    before: Mapping[int, host.Usage] = field(default_factory=dict)
    after: Mapping[int, host.Usage] = field(default_factory=dict)


class Watch:
    """Reads conditions at 1 Hz from a thread that lives only while a window is open."""

    def __init__(
        self,
        root: int,
        processors: Sequence[int],
        energy: EnergyMeter,
        gpu: GpuWatch | None = None,
        proc: Path = host.PROC,
        sys: Path = host.SYS,
    ) -> None:
        self._root, self._processors, self._energy, self._gpu = root, tuple(processors), energy, gpu
        self._proc, self._sys = proc, sys
        self._stretches: list[Stretch] = []
        self._pids: tuple[int, ...] = ()
        self._stop: threading.Event | None = None
        self._thread: threading.Thread | None = None

    def open(self) -> None:
        """The timed part begins."""
        if self._thread is not None:
            return
        # One pass over all processes for both uses: it runs while the child already measures.
        stretch = Stretch(before=host.usage(self._proc))
        self._pids = tuple(host.below(self._root, stretch.before))
        self._stretches.append(stretch)
        self._energy.open()
        stretch.readings.append(self._read())
        self._stop = threading.Event()
        self._thread = threading.Thread(
            target=self._watch, args=(stretch, self._stop), name="effillm-conditions", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """The timed part ends; harmless when none is open."""
        if self._thread is None or self._stop is None:
            return
        self._stop.set()
        self._thread.join()
        self._thread = None
        stretch = self._stretches[-1]
        self._energy.close()
        stretch.after = host.usage(self._proc)
        self._pids = tuple(host.below(self._root, stretch.after))
        stretch.readings.append(self._read())

    def conditions(self) -> Conditions:
        """What all windows together showed, and what could not be watched."""
        return summarise(self._stretches, self._root, self._processors, self._gpu)

    def _watch(self, stretch: Stretch, stop: threading.Event) -> None:
        while not stop.wait(PERIOD_S):
            stretch.readings.append(self._read())
            self._energy.tick()

    def _read(self) -> Reading:
        used = [host.process_ticks(pid, self._proc) for pid in self._pids]
        return Reading(
            at_s=time.monotonic(),
            cpu=host.cpu_times(self._processors, self._proc),
            tree_ticks=sum(used),
            tree_swap_bytes=sum(host.swapped_bytes(pid, self._proc) for pid in self._pids),
            swapped_pages=host.swapped_pages(self._proc),
            clock_mhz=host.clock_mhz(self._processors, self._sys),
            throttle_events=host.throttle_events(self._sys),
            gpu=self._gpu.sample(self._pids) if self._gpu is not None else None,
        )


def summarise(
    stretches: Sequence[Stretch], root: int, processors: Sequence[int], gpu: GpuWatch | None = None
) -> Conditions:
    """Conditions over these windows; pure, so that recorded readings can be held against it."""
    stretches = [stretch for stretch in stretches if len(stretch.readings) > 1]
    if not stretches:
        return Conditions(not_watched={"all": "no measuring window was opened", "others_cpus": "no measuring window"})
    watched: dict[str, Any] = {}
    missing: dict[str, str] = {}
    _processor_use(stretches, processors, watched)
    watched["top_others"] = _top_others(stretches, root, watched["window_s"])
    _memory_pressure(stretches, watched, missing)
    _clocks(stretches, watched, missing)
    if gpu is not None:
        samples = [reading.gpu for stretch in stretches for reading in stretch.readings if reading.gpu is not None]
        gpu.summarise(samples, watched, missing)
    return Conditions(watched=watched, not_watched=missing)


def _processor_use(stretches: Sequence[Stretch], processors: Sequence[int], watched: dict[str, Any]) -> None:
    window_s = sum(s.readings[-1].at_s - s.readings[0].at_s for s in stretches)
    busy = sum(s.readings[-1].cpu.busy - s.readings[0].cpu.busy for s in stretches)
    ours = sum(s.readings[-1].tree_ticks - s.readings[0].tree_ticks for s in stretches)
    steal = sum(s.readings[-1].cpu.steal - s.readings[0].cpu.steal for s in stretches)
    total = sum(s.readings[-1].cpu.total - s.readings[0].cpu.total for s in stretches)
    count = stretches[0].readings[0].cpu.count
    watched |= {
        "window_s": round(window_s, 3),
        "readings": sum(len(s.readings) for s in stretches),
        "processors": count,
        "tree_cpus": round(ours / host.TICKS_PER_S / window_s, 4),
        "others_cpus": round(max(0.0, (busy - ours) / host.TICKS_PER_S / window_s), 4),
        # One tick per processor at either end of each window, and one for the tree.
        "resolution_cpus": round((count + 1) * len(stretches) / host.TICKS_PER_S / window_s, 4),
        "others_cpus_max": round(max((_others(a, b) for s in stretches for a, b in _pairs(s)), default=0.0), 4),
        "steal_share": round(steal / total, 5) if total else 0.0,
    }
    if processors:
        watched["bound_to"] = list(processors)


def _pairs(stretch: Stretch) -> list[tuple[Reading, Reading]]:
    pairs = zip(stretch.readings, stretch.readings[1:], strict=False)
    return [(a, b) for a, b in pairs if b.at_s - a.at_s >= SHORTEST_S]


def _others(before: Reading, after: Reading) -> float:
    ticks = (after.cpu.busy - before.cpu.busy) - (after.tree_ticks - before.tree_ticks)
    return max(0.0, ticks / host.TICKS_PER_S / (after.at_s - before.at_s))


def _top_others(stretches: Sequence[Stretch], root: int, window_s: float) -> list[dict[str, Any]]:
    """The three processes outside the child's tree that used most processor time, those above 1 % of one."""
    ticks: dict[int, int] = {}
    names: dict[int, str] = {}
    for stretch in stretches:
        ours = host.below(root, stretch.after) | host.below(root, stretch.before)
        for pid, now in stretch.after.items():
            before = stretch.before.get(pid)
            if pid not in ours:
                # Its own only: what it reaps may have run long before the window.
                ticks[pid] = ticks.get(pid, 0) + now.own_ticks - (before.own_ticks if before else 0)
                names[pid] = now.name
    most = sorted(ticks, key=lambda pid: -ticks[pid])[:3]
    used = [(pid, ticks[pid] / host.TICKS_PER_S / window_s) for pid in most]
    return [{"pid": pid, "name": names[pid], "cpus": round(cpus, 3)} for pid, cpus in used if cpus > 0.01]


def _memory_pressure(stretches: Sequence[Stretch], watched: dict[str, Any], missing: dict[str, str]) -> None:
    pages = [(s.readings[0].swapped_pages, s.readings[-1].swapped_pages) for s in stretches]
    if any(first is None or last is None for first, last in pages):
        missing["machine_swap_bytes"] = "no pswpin and pswpout in /proc/vmstat"
    else:
        size = os.sysconf("SC_PAGE_SIZE")
        watched["machine_swap_bytes"] = sum((last or 0) - (first or 0) for first, last in pages) * size
    watched["tree_swap_bytes"] = max(r.tree_swap_bytes for s in stretches for r in s.readings)


def _clocks(stretches: Sequence[Stretch], watched: dict[str, Any], missing: dict[str, str]) -> None:
    readings = [reading for stretch in stretches for reading in stretch.readings]
    clocks = [reading.clock_mhz for reading in readings if reading.clock_mhz is not None]
    if clocks:
        low, high = min(clocks), max(clocks)
        watched["clock_mhz"] = {"min": round(low), "mean": round(fmean(clocks)), "max": round(high)}
        watched["clock_drop"] = round((high - low) / high, 4)
    else:
        missing["processor_clock"] = "no cpufreq in /sys: a virtual machine or a kernel without a frequency driver"
    events = [(s.readings[0].throttle_events, s.readings[-1].throttle_events) for s in stretches]
    if any(first is None or last is None for first, last in events):
        missing["processor_throttle_events"] = "no thermal_throttle counters in /sys"
    else:
        watched["processor_throttle_events"] = sum((last or 0) - (first or 0) for first, last in events)
