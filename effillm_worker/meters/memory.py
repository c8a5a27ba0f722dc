"""Memory of a process tree, read from outside: resident set, its high-water mark, proportional set."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from effillm_server.contract.outcome import MemoryReading
from effillm_worker.meters.nvml import GpuProbe, NvmlError

PROC = Path("/proc")
RESET_PEAK = "5"  # proc_pid_clear_refs(5): reset the peak resident set size to the current one
RAM_SOURCE = "VmRSS, VmHWM and smaps_rollup Pss of the child's tree"


def tree(root: int, proc: Path = PROC) -> tuple[int, ...]:
    """Ids of `root` and every process below it that still runs, by one pass over /proc."""
    children: dict[int, list[int]] = {}
    for entry in proc.iterdir():
        if entry.name.isdigit():
            parent = _parent(entry)
            if parent is not None:
                children.setdefault(parent, []).append(int(entry.name))
    found, queue = [], [root]
    while queue:
        pid = queue.pop()
        if (proc / str(pid)).exists():
            found.append(pid)
        queue += children.get(pid, [])
    return tuple(found)


@dataclass(frozen=True)
class TreeMeter:
    """Reads the memory of the tree below `root`; `gpu` adds what the driver says of the device."""

    root: int
    gpu: GpuProbe | None = None
    proc: Path = PROC

    def reset_peak(self) -> bool:
        """Start a new high-water mark for every process of the tree; whether the kernel allowed all of them."""
        done = True
        for pid in tree(self.root, self.proc):
            try:
                (self.proc / str(pid) / "clear_refs").write_text(RESET_PEAK)
            except OSError:
                done = False
        return done

    def read(self, allocator: Mapping[str, int], *, peak: bool = False) -> MemoryReading:
        """One reading. `allocator` is what the child's device allocator says; `peak` takes its peaks, else its present."""
        pids = tree(self.root, self.proc)
        status = [_status(self.proc / str(pid)) for pid in pids]
        shares = [_pss(self.proc / str(pid)) for pid in pids]
        prefix = "peak_" if peak else ""
        process, used = self._device(pids)
        has_vram = bool(allocator) or used is not None
        return MemoryReading(
            ram_bytes=_sum([values.get("VmRSS") for values in status]),
            ram_peak_bytes=_sum([values.get("VmHWM") for values in status]),
            ram_pss_bytes=_sum(shares),
            ram_source=f"{RAM_SOURCE}, {len(pids)} process{'es' if len(pids) > 1 else ''}",
            vram_bytes=allocator.get(prefix + "allocated"),
            vram_reserved_bytes=allocator.get(prefix + "reserved"),
            vram_process_bytes=process,
            vram_device_used_bytes=used,
            vram_source="allocator of the framework; process and device by NVML" if has_vram else None,
        )

    def file_backed_bytes(self) -> int | None:
        """Resident pages of mapped files: libraries' code, and weights that are mapped rather than copied."""
        return _sum([_status(self.proc / str(pid), "RssFile").get("RssFile") for pid in tree(self.root, self.proc)])

    def _device(self, pids: Sequence[int]) -> tuple[int | None, int | None]:
        if self.gpu is None:
            return None, None
        try:
            shares = [size for pid, size in self.gpu.processes().items() if pid in pids and size is not None]
            return (sum(shares) if shares else None), self.gpu.memory_used_bytes()
        except NvmlError:
            return None, None


def median(readings: Sequence[MemoryReading]) -> MemoryReading | None:
    """The reading whose every figure is the median of that figure over `readings`; None without any."""
    if not readings:
        return None
    fields: dict[str, int | str | None] = {}
    for name in MemoryReading.model_fields:
        values = [getattr(reading, name) for reading in readings]
        numbers = [value for value in values if isinstance(value, int)]
        fields[name] = round(statistics.median(numbers)) if numbers else values[-1]
    return MemoryReading.model_validate(fields)


def _parent(entry: Path) -> int | None:
    try:
        return int((entry / "stat").read_text(errors="replace").rpartition(")")[2].split()[1])
    except (OSError, IndexError, ValueError):
        return None


def _status(entry: Path, prefix: str = "Vm") -> dict[str, int]:
    try:
        lines = (entry / "status").read_text(errors="replace").splitlines()
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in lines if line.startswith(prefix))
    return {name: int(value.split()[0]) * 1024 for name, value in pairs}


def _pss(entry: Path) -> int | None:
    try:
        lines = (entry / "smaps_rollup").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), None)


def _sum(values: Sequence[int | None]) -> int | None:
    """Sum of what is known; None when nothing is."""
    known = [value for value in values if value is not None]
    return sum(known) if known else None
