"""What the meters ask of an NVIDIA driver: a thin protocol, its NVML implementation, nothing else."""

from __future__ import annotations

from typing import Any, Protocol


class NvmlError(Exception):
    """The driver did not answer this question; the message is its own."""


class GpuProbe(Protocol):
    """One GPU as its driver reports it. Every method may raise NvmlError."""

    def memory_used_bytes(self) -> int:
        """Memory in use on the device, by anybody."""
        ...

    def processes(self) -> dict[int, int | None]:
        """Compute and graphics processes on the device: id in the driver's namespace -> bytes, None where it hides them."""
        ...

    def temperature_c(self) -> float: ...

    def power_w(self) -> float: ...

    def power_limit_w(self) -> float: ...

    def clocks_mhz(self) -> dict[str, int]:
        """Present clocks: `sm` and `memory`."""
        ...

    def throttle_reasons(self) -> int:
        """The driver's bit mask of why clocks are where they are."""
        ...

    def energy_j(self) -> float:
        """Energy since the driver was loaded."""
        ...


class NvmlGpu:
    """A GPU through nvidia-ml-py. NVML stays initialised for the life of the process; it counts its own users."""

    def __init__(self, uuid: str) -> None:
        """Find the GPU (or MIG slice) `uuid`. Raises NvmlError when there is no library, no driver or no such device."""
        try:
            import pynvml
        except ImportError as error:
            raise NvmlError(f"nvidia-ml-py is not installed: {error}") from None
        self._nvml: Any = pynvml
        self._call(pynvml.nvmlInit)
        self._handle = self._call(pynvml.nvmlDeviceGetHandleByUUID, uuid)

    def memory_used_bytes(self) -> int:
        return int(self._ask("MemoryInfo").used)

    def processes(self) -> dict[int, int | None]:
        found: dict[int, int | None] = {}
        for kind in ("ComputeRunningProcesses", "GraphicsRunningProcesses"):
            for process in self._ask(kind):
                found[int(process.pid)] = process.usedGpuMemory
        return found

    def temperature_c(self) -> float:
        return float(self._ask("Temperature", self._nvml.NVML_TEMPERATURE_GPU))

    def power_w(self) -> float:
        return float(self._ask("PowerUsage")) / 1000

    def power_limit_w(self) -> float:
        return float(self._ask("EnforcedPowerLimit")) / 1000

    def clocks_mhz(self) -> dict[str, int]:
        kinds = {"sm": self._nvml.NVML_CLOCK_SM, "memory": self._nvml.NVML_CLOCK_MEM}
        return {name: int(self._ask("ClockInfo", kind)) for name, kind in kinds.items()}

    def throttle_reasons(self) -> int:
        # The old name of nvmlDeviceGetCurrentClocksEventReasons: drivers before 535 know no other.
        return int(self._ask("CurrentClocksThrottleReasons"))

    def energy_j(self) -> float:
        return float(self._ask("TotalEnergyConsumption")) / 1000

    def _ask(self, what: str, *arguments: Any) -> Any:
        return self._call(getattr(self._nvml, f"nvmlDeviceGet{what}"), self._handle, *arguments)

    def _call(self, function: Any, *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except self._nvml.NVMLError as error:
            raise NvmlError(str(error)) from None
