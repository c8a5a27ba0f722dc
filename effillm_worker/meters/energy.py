"""Energy over the measured window from a hardware counter, or null with the reason; never an estimate."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from effillm_worker.meters.nvml import GpuProbe, NvmlError

POWERCAP = Path("/sys/class/powercap")


class EnergyCounter(Protocol):
    """A counter that only grows, but may wrap at `wraps_at` joules (None: never)."""

    @property
    def source(self) -> str:
        """What is counted, and for what part of the machine."""
        ...

    def read(self) -> tuple[float, ...]:
        """Joules so far, one figure per domain. Raises OSError or NvmlError."""
        ...

    def wraps_at(self) -> tuple[float | None, ...]: ...


@dataclass(frozen=True)
class NvmlEnergy:
    """The whole board's counter, millijoule steps, about 10 updates a second on most boards."""

    gpu: GpuProbe
    source: str = "NVML total energy counter of the GPU, whole board"

    def read(self) -> tuple[float, ...]:
        return (self.gpu.energy_j(),)

    def wraps_at(self) -> tuple[float | None, ...]:
        return (None,)


@dataclass(frozen=True)
class Rapl:
    """The processor packages' RAPL counters through the kernel's powercap interface; whole machine, not one process."""

    packages: tuple[Path, ...]
    source: str = "RAPL package counters, whole machine"

    def read(self) -> tuple[float, ...]:
        return tuple(int((zone / "energy_uj").read_text()) * 1e-6 for zone in self.packages)

    def wraps_at(self) -> tuple[float | None, ...]:
        return tuple(int((zone / "max_energy_range_uj").read_text()) * 1e-6 for zone in self.packages)


def find_counter(gpu: GpuProbe | None, powercap: Path = POWERCAP) -> EnergyCounter | str:
    """The counter for this device, or why there is none."""
    if gpu is not None:
        return _readable(NvmlEnergy(gpu))
    if not powercap.is_dir():
        return f"no RAPL counters: {powercap} does not exist (virtual machine or no driver)"
    # intel-rapl:0 is a package; intel-rapl:0:1 a part of it. AMD's driver uses the same names. The MMIO copy repeats packages.
    packages = tuple(sorted(zone for zone in powercap.glob("intel-rapl:*") if zone.name.count(":") == 1))
    if not packages:
        return f"no RAPL package below {powercap}"
    return _readable(Rapl(packages))


def _readable(counter: EnergyCounter) -> EnergyCounter | str:
    try:
        counter.read()
        counter.wraps_at()
    except PermissionError as error:
        return f"{counter.source}: not readable by this user ({error.filename})"
    except (OSError, NvmlError, ValueError) as error:
        return f"{counter.source}: {error}"
    return counter


class EnergyMeter:
    """Joules between `open` and `close`, summed over windows; `tick` in between catches counters that wrap."""

    def __init__(self, counter: EnergyCounter | str) -> None:
        self._counter = None if isinstance(counter, str) else counter
        self._reason = counter if isinstance(counter, str) else ""
        self._last: tuple[float, ...] | None = None
        self._joules = 0.0
        self._windows = 0

    def open(self) -> None:
        """The window begins."""
        self._last = self._read()
        self._windows += 1

    def tick(self) -> None:
        """Take in what was used since the last reading; at least every few minutes."""
        now = self._read()
        if self._counter is not None and now is not None and self._last is not None:
            for before, after, range_j in zip(self._last, now, self._counter.wraps_at(), strict=True):
                self._joules += after - before if after >= before or range_j is None else after - before + range_j
        self._last = now

    def close(self) -> None:
        """The window ends."""
        self.tick()
        self._last = None

    @property
    def result(self) -> tuple[float | None, str]:
        """Joules and the counter's name, or None and the reason."""
        if self._counter is None:
            return None, self._reason
        if not self._windows:
            return None, "no window was measured"
        return self._joules, self._counter.source

    def _read(self) -> tuple[float, ...] | None:
        counter = self._counter
        if counter is None:
            return None
        try:
            return counter.read()
        except (OSError, NvmlError, ValueError) as error:
            self._counter, self._reason = None, f"{counter.source}: failed inside the window: {error}"
            return None
