"""A GPU that reports what a test tells it to: implements `GpuProbe`, talks to no driver."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar

from effillm_worker.meters.nvml import NvmlError

T = TypeVar("T")


@dataclass
class FakeNvml:
    """Set the fields; name a method in `silent` and it answers as a driver without that feature."""

    used_bytes: int = 0
    running: dict[int, int | None] = field(default_factory=dict)
    temperature: float = 40.0
    power: float = 60.0
    power_limit: float = 72.0
    sm_mhz: int = 1500
    throttle: int = 0
    joules: list[float] = field(default_factory=lambda: [0.0])
    silent: frozenset[str] = frozenset()

    def memory_used_bytes(self) -> int:
        return self._answer("memory_used_bytes", self.used_bytes)

    def processes(self) -> dict[int, int | None]:
        self._answer("processes", 0)
        return dict(self.running)

    def temperature_c(self) -> float:
        return self._answer("temperature_c", self.temperature)

    def power_w(self) -> float:
        return self._answer("power_w", self.power)

    def power_limit_w(self) -> float:
        return self._answer("power_limit_w", self.power_limit)

    def clocks_mhz(self) -> dict[str, int]:
        return {"sm": self._answer("clocks_mhz", self.sm_mhz), "memory": 6000}

    def throttle_reasons(self) -> int:
        return self._answer("throttle_reasons", self.throttle)

    def energy_j(self) -> float:
        """The next of `joules`; the last one for ever."""
        self._answer("energy_j", 0)
        return self.joules.pop(0) if len(self.joules) > 1 else self.joules[0]

    def _answer(self, name: str, value: T) -> T:
        if name in self.silent:
            raise NvmlError("Not Supported")
        return value
