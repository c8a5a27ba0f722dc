"""Single readings of the machine from /proc and /sys, each a few microseconds and none taken in the child."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

PROC = Path("/proc")
SYS = Path("/sys")
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
CLOCKS_READ = 8  # reading a clock may interrupt its processor, so a sample of them does


@dataclass(frozen=True)
class CpuTimes:
    """Clock ticks summed over `count` processors since boot (proc_stat(5)); `steal` is part of `total`, not of `busy`."""

    busy: int
    steal: int
    total: int
    count: int


@dataclass(frozen=True)
class Usage:
    """Processor time of one process since it began: its own, and that of children it has waited for."""

    parent: int
    name: str
    own_ticks: int
    reaped_ticks: int


def cpu_times(processors: Sequence[int] = (), proc: Path = PROC) -> CpuTimes:
    """Times of these processors, of all without any."""
    wanted = {f"cpu{number}" for number in processors}
    rows = []
    for line in (proc / "stat").read_text().splitlines():
        name, *fields = line.split()
        if name.startswith("cpu") and name != "cpu" and (not wanted or name in wanted):
            rows.append([int(value) for value in fields[:8]])
    sums = [sum(column) for column in zip(*rows, strict=True)] or [0] * 8
    user, nice, system, idle, iowait, irq, softirq, steal = sums
    busy = user + nice + system + irq + softirq
    return CpuTimes(busy=busy, steal=steal, total=busy + idle + iowait + steal, count=len(rows))


def process_ticks(pid: int, proc: Path = PROC) -> int:
    """Ticks of a process and of children it has waited for; 0 when it is gone."""
    try:
        process = _usage((proc / str(pid) / "stat").read_text(errors="replace"))
    except (OSError, ValueError, IndexError):
        return 0
    return process.own_ticks + process.reaped_ticks


def usage(proc: Path = PROC) -> dict[int, Usage]:
    """Processor time of every process. A pass over all of them: for the ends of a window only."""
    found = {}
    for entry in proc.iterdir():
        if entry.name.isdigit():
            try:
                found[int(entry.name)] = _usage((entry / "stat").read_text(errors="replace"))
            except (OSError, ValueError, IndexError):
                continue  # it ended while we looked
    return found


def below(root: int, processes: Mapping[int, Usage]) -> set[int]:
    """`root` and its descendants among these processes."""
    found = {root}
    while more := {pid for pid, process in processes.items() if process.parent in found} - found:
        found |= more
    return found


def swapped_bytes(pid: int, proc: Path = PROC) -> int:
    """Bytes of this process that are swapped out; 0 when it is gone."""
    try:
        lines = (proc / str(pid) / "status").read_text(errors="replace").splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmSwap:"))


def swapped_pages(proc: Path = PROC) -> int | None:
    """Pages swapped in and out by the machine since boot; None when the kernel does not count them."""
    try:
        lines = (proc / "vmstat").read_text().splitlines()
    except OSError:
        return None
    counts = [int(line.split()[1]) for line in lines if line.startswith(("pswpin ", "pswpout "))]
    return sum(counts) if len(counts) == 2 else None


def clock_mhz(processors: Sequence[int] = (), sys: Path = SYS) -> float | None:
    """Mean present clock of a few of these processors; None where the kernel does not show it."""
    chosen = processors or range(os.cpu_count() or 1)
    clocks = []
    for number in list(chosen)[:: max(1, len(chosen) // CLOCKS_READ)]:
        try:
            path = sys / f"devices/system/cpu/cpu{number}/cpufreq/scaling_cur_freq"
            clocks.append(int(path.read_text()) / 1000)
        except (OSError, ValueError):
            continue
    return fmean(clocks) if clocks else None


def throttle_events(sys: Path = SYS) -> int | None:
    """Times any core or package was throttled by its temperature since boot; None where nobody counts."""
    paths = list((sys / "devices/system/cpu").glob("cpu[0-9]*/thermal_throttle/*_throttle_count"))
    counts = []
    for path in paths:
        try:
            counts.append(int(path.read_text()))
        except (OSError, ValueError):
            continue
    return sum(counts) if counts else None


def _usage(stat: str) -> Usage:
    head, _, rest = stat.rpartition(")")
    fields = rest.split()
    # Fields 4 (parent) and 14-17 (utime, stime, cutime, cstime) of proc_pid_stat(5); `rest` begins at field 3.
    utime, stime, cutime, cstime = (int(value) for value in fields[11:15])
    return Usage(int(fields[1]), head.partition("(")[2], utime + stime, cutime + cstime)
