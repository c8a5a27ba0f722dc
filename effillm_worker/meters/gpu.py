"""A GPU's conditions while it measures: throttling, temperature, power, clocks, other processes on it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, TypeVar

from effillm_worker.meters.nvml import GpuProbe, NvmlError

# Bits of nvmlClocksEventReasons; gpu_idle (1) and application clocks (2) are no throttling.
THROTTLE = {
    0x4: "sw_power_cap", 0x8: "hw_slowdown", 0x10: "sync_boost", 0x20: "sw_thermal", 0x40: "hw_thermal",
    0x80: "hw_power_brake",
}  # fmt: skip
INITIAL_PID_NAMESPACE = 4026531836  # PROC_PID_INIT_INO of the kernel

T = TypeVar("T")


@dataclass(frozen=True)
class GpuSample:
    """One look at the GPU; None where the driver did not answer."""

    throttle: int | None = None
    temperature_c: float | None = None
    power_w: float | None = None
    power_limit_w: float | None = None
    sm_mhz: int | None = None
    processes: int | None = None
    foreign: int | None = None


class GpuWatch:
    """Takes samples of one GPU; `reason` says why there is nothing to take them from."""

    def __init__(self, probe: GpuProbe | None, reason: str = "", *, sees_our_pids: bool | None = None) -> None:
        self._probe = probe
        self._reason = reason
        self._sees_our_pids = _in_initial_namespace() if sees_our_pids is None else sees_our_pids

    def sample(self, pids: Sequence[int]) -> GpuSample | None:
        """The GPU now; `pids` are those of the measuring tree."""
        probe = self._probe
        if probe is None:
            return None
        found = self._ask(probe.processes)
        clocks = self._ask(probe.clocks_mhz)
        return GpuSample(
            throttle=self._ask(probe.throttle_reasons),
            temperature_c=self._ask(probe.temperature_c),
            power_w=self._ask(probe.power_w),
            power_limit_w=self._ask(probe.power_limit_w),
            sm_mhz=None if clocks is None else clocks.get("sm"),
            processes=None if found is None else len(found),
            foreign=None if found is None else self._foreign(set(found), set(pids)),
        )

    def summarise(self, samples: Sequence[GpuSample], watched: dict[str, Any], missing: dict[str, str]) -> None:
        """Add what these samples show to `watched`, what they do not to `missing`."""
        columns: dict[str, list[Any]] = {
            "gpu_throttle": [s.throttle for s in samples],
            "gpu_processes": [s.processes for s in samples],
            "gpu_temperature_c": [s.temperature_c for s in samples],
            "gpu_power_w": [s.power_w for s in samples],
            "gpu_power_limit_w": [s.power_limit_w for s in samples],
            "gpu_sm_mhz": [s.sm_mhz for s in samples],
        }
        for name, column in columns.items():
            values = [value for value in column if value is not None]
            if not values:
                missing[name] = self._reason or "the driver does not tell"
            elif name == "gpu_throttle":
                watched[name] = sorted({THROTTLE[bit] for value in values for bit in THROTTLE if value & bit})
            elif name == "gpu_processes":
                watched[name] = max(values)
                watched["gpu_foreign_processes"] = max(s.foreign or 0 for s in samples)
            else:
                watched[name] = {"min": min(values), "mean": round(fmean(values), 1), "max": max(values)}

    def _foreign(self, found: set[int], ours: set[int]) -> int:
        """Processes on the GPU beside the child's. In a container the driver's ids are the host's: then one is taken as ours."""
        return len(found - ours) if self._sees_our_pids else max(0, len(found) - 1)

    def _ask(self, question: Callable[[], T]) -> T | None:
        try:
            return question()
        except NvmlError as error:
            self._reason = str(error)
            return None


def _in_initial_namespace() -> bool:
    try:
        return os.stat("/proc/self/ns/pid").st_ino == INITIAL_PID_NAMESPACE  # noqa: PTH116 - a kernel object, no file
    except OSError:
        return False
