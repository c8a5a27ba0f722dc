"""What stands in the way of steady numbers on this machine now, and what to change."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from effillm_server.contract.fingerprint import DeviceDeclaration
from effillm_server.contract.units import format_bytes
from effillm_worker.doctor.sight import ROOT, is_virtual
from effillm_worker.meters.conditions import Watch
from effillm_worker.meters.energy import EnergyMeter
from effillm_worker.meters.verdict import OTHERS_CPUS, OTHERS_SHARE, STEAL_SHARE

LOOK_S = 1.5
CPU = "sys/devices/system/cpu"


@dataclass(frozen=True)
class Advice:
    """One thing found and what would make numbers steadier."""

    topic: str
    found: str
    change: str


def advice(device: DeviceDeclaration, root: Path = ROOT, look_s: float = LOOK_S) -> tuple[Advice, ...]:
    """What to change, the most disturbing first; watches the machine for `look_s` as a measurement would."""
    watched = other_load(device, look_s)
    return (
        *_load(device, watched), *_steal(watched, root), *_swap(root), *_governor(device, root), *_turbo(root),
        *_smt(device, root), *_nodes(device), *_clock_source(root), *_gpu(device),
    )  # fmt: skip


def other_load(device: DeviceDeclaration, look_s: float = LOOK_S) -> dict[str, Any]:
    """Conditions around this process for a moment, by the watch that stands beside every measurement."""
    watch = Watch(os.getpid(), device.processors, EnergyMeter("not asked"))
    watch.open()
    threading.Event().wait(look_s)
    watch.close()
    return watch.conditions().watched


def _load(device: DeviceDeclaration, watched: dict[str, Any]) -> Iterator[Advice]:
    kind = "cpu" if device.gpu_uuid is None else "gpu"
    used, processors = watched["others_cpus"] - watched["resolution_cpus"], watched["processors"]
    limit = min(OTHERS_SHARE[kind].suspect * processors, OTHERS_CPUS[kind].suspect)
    if used > limit:
        names = ", ".join(f"{other['name']} {other['cpus']:.2f}" for other in watched["top_others"])
        yield Advice(
            "other load", f"other processes use {used:.2f} of {processors} processors" + (f" ({names})" if names else ""),
            f"stop them or wait; above {limit:.2f} a result is marked suspect",
        )  # fmt: skip


def _steal(watched: dict[str, Any], root: Path) -> Iterator[Advice]:
    share = watched["steal_share"]
    if share > STEAL_SHARE.suspect:
        yield Advice("steal", f"the hypervisor took {share:.1%} of the time", "use dedicated cores, or another host")
    elif is_virtual(root):
        yield Advice(
            "virtual machine", "neighbours on the host share its caches and memory bandwidth, unseen from here",
            "use bare metal or a host of your own; else repeat cells (`measurement: {repeats: 3}`)",
        )  # fmt: skip


def _swap(root: Path) -> Iterator[Advice]:
    lines = (line.split() for line in _text(root / "proc/meminfo").splitlines())
    sizes = {fields[0].rstrip(":"): int(fields[1]) * 1024 for fields in lines if len(fields) > 1}
    total, free = sizes.get("SwapTotal", 0), sizes.get("SwapFree", 0)
    if total:
        yield Advice(
            "swap", f"{format_bytes(total)} of swap are on, {format_bytes(total - free)} used",
            "`swapoff -a` for the time of the measurements: a model that does not fit then says so instead of crawling",
        )  # fmt: skip


def _governor(device: DeviceDeclaration, root: Path) -> Iterator[Advice]:
    processors = device.processors or tuple(range(os.cpu_count() or 1))
    found = {_text(root / CPU / f"cpu{number}/cpufreq/scaling_governor") for number in processors} - {"", "performance"}
    if found:
        yield Advice(
            "governor", f"the clock follows the load (governor {', '.join(sorted(found))})",
            "`cpupower frequency-set -g performance` as root",
        )  # fmt: skip


def _turbo(root: Path) -> Iterator[Advice]:
    # Two drivers, opposite meanings.
    intel, others = root / CPU / "intel_pstate/no_turbo", root / CPU / "cpufreq/boost"
    for file, on, off in ((intel, "0", "1"), (others, "1", "0")):
        if _text(file) == on:
            yield Advice(
                "turbo", "the processor raises its clock as long as it is cool",
                f"`echo {off} > {file}` as root: lower numbers, but the same in a cold and a warm hour",
            )  # fmt: skip
            return


def _smt(device: DeviceDeclaration, root: Path) -> Iterator[Advice]:
    box = device.hardware.processor
    if box.logical_cores > box.physical_cores and _text(root / CPU / "smt/active") != "0":
        yield Advice(
            "SMT", f"{box.logical_cores} logical processors on {box.physical_cores} cores; EffiLLM computes with one thread per core",
            "`echo off > /sys/devices/system/cpu/smt/control` as root keeps other work off the second half of its cores",
        )  # fmt: skip


def _nodes(device: DeviceDeclaration) -> Iterator[Advice]:
    nodes = device.hardware.processor.numa_nodes
    if device.gpu_uuid is None and nodes > 1:
        yield Advice(
            "memory nodes", f"the processors have {nodes} memory nodes, and where a model's pages land differs from run to run",
            "start it on one of them: `numactl --cpunodebind=0 --membind=0 effillm up`",
        )  # fmt: skip


def _clock_source(root: Path) -> Iterator[Advice]:
    source = _text(root / "sys/devices/system/clocksource/clocksource0/current_clocksource")
    if source in ("hpet", "acpi_pm", "jiffies"):
        yield Advice(
            "clock source", f"the kernel reads time from {source}, which takes microseconds a reading",
            "find in the kernel's log why it left `tsc`; `clocksource=tsc` at start brings it back where that is safe",
        )  # fmt: skip


def _gpu(device: DeviceDeclaration) -> Iterator[Advice]:
    if device.gpu_uuid is not None:
        top = (device.hardware.gpu.max_clocks_mhz if device.hardware.gpu else {}).get("sm")
        yield Advice(
            "GPU clocks", "the driver moves them with temperature and power",
            f"`nvidia-smi -pm 1`, then `nvidia-smi -lgc` with one clock below {top or 'the highest'} MHz as root; `-rgc` undoes it",
        )  # fmt: skip


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""
