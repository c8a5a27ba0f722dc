"""The GPUs of this box as the driver describes them, whole ones and MIG slices, through NVML."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from effillm_server.catalog import hardware_class
from effillm_server.contract.fingerprint import Gpu

CLOCKS = {"graphics": 0, "sm": 1, "memory": 2}


@dataclass(frozen=True)
class FoundGpu:
    """A GPU, or a MIG slice of one, that a child can be given: its class and its description."""

    hardware_class: str
    gpu: Gpu


def found(environment: Mapping[str, str] | None = None) -> tuple[FoundGpu, ...]:
    """Every GPU this process may use, in PCI order; none without NVIDIA's library or driver. CUDA_VISIBLE_DEVICES is heeded."""
    visible = (os.environ if environment is None else environment).get("CUDA_VISIBLE_DEVICES")
    with _nvml() as nvml:
        if nvml is None:
            return ()
        whole = list(range(nvml.nvmlDeviceGetCount()))
        return tuple(
            item
            for index in whole
            for item in _of_board(nvml, nvml.nvmlDeviceGetHandleByIndex(index))
            if is_visible(index, item.gpu.uuid, visible)
        )


def is_visible(index: int, uuid: str, visible: str | None) -> bool:
    """Whether CUDA_VISIBLE_DEVICES lets this GPU through; entries are indices or beginnings of a uuid, as CUDA takes them."""
    if visible is None:
        return True
    for entry in (part.strip() for part in visible.split(",")):
        if entry.lstrip("-").isdigit() and int(entry) < 0:
            return False  # CUDA stops reading at the first invalid entry
        if entry == str(index) or (entry and uuid.startswith(entry)):
            return True
    return False


@contextmanager
def _nvml() -> Iterator[Any | None]:
    try:
        import pynvml
    except ImportError:
        yield None
        return
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        yield None
        return
    try:
        yield pynvml
    finally:
        pynvml.nvmlShutdown()


def _of_board(nvml: Any, board: Any) -> list[FoundGpu]:
    name = _text(nvml.nvmlDeviceGetName(board))
    if not _asked(nvml, lambda: nvml.nvmlDeviceGetMigMode(board)[0]):
        return [FoundGpu(hardware_class(name), describe(nvml, board, board))]
    slices = []
    for index in range(nvml.nvmlDeviceGetMaxMigDeviceCount(board)):
        handle = _asked(nvml, lambda i=index: nvml.nvmlDeviceGetMigDeviceHandleByIndex(board, i))
        if handle is not None:
            # A slice is another device than the whole board: its class carries the profile, "a100-mig-1g.5gb".
            profile = _text(nvml.nvmlDeviceGetName(handle)).rpartition(" ")[2].lower()
            slices.append(FoundGpu(f"{hardware_class(name)}-mig-{profile}", describe(nvml, handle, board)))
    return slices


def describe(nvml: Any, handle: Any, board: Any) -> Gpu:
    """The description of `handle`; what only the whole board knows (power, clocks, link) is read from `board`."""
    driver = _asked(nvml, nvml.nvmlSystemGetDriverVersion)
    cuda = _asked(nvml, nvml.nvmlSystemGetCudaDriverVersion_v2)
    limit_mw = _asked(nvml, lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(board))
    capability = _asked(nvml, lambda: nvml.nvmlDeviceGetCudaComputeCapability(board))
    clocks = {
        kind: _asked(nvml, lambda n=number: nvml.nvmlDeviceGetMaxClockInfo(board, n)) for kind, number in CLOCKS.items()
    }
    return Gpu(
        name=_text(nvml.nvmlDeviceGetName(handle)),
        uuid=_text(nvml.nvmlDeviceGetUUID(handle)),
        memory_bytes=int(nvml.nvmlDeviceGetMemoryInfo(handle).total),
        driver=None if driver is None else _text(driver),
        cuda=None if cuda is None else f"{cuda // 1000}.{cuda % 1000 // 10}",
        power_limit_w=None if limit_mw is None else limit_mw / 1000,
        max_clocks_mhz={kind: mhz for kind, mhz in clocks.items() if mhz is not None},
        pcie_generation=_asked(nvml, lambda: nvml.nvmlDeviceGetMaxPcieLinkGeneration(board)),
        pcie_width=_asked(nvml, lambda: nvml.nvmlDeviceGetMaxPcieLinkWidth(board)),
        ecc=_flag(_asked(nvml, lambda: nvml.nvmlDeviceGetEccMode(board)[0])),
        mig=_flag(_asked(nvml, lambda: nvml.nvmlDeviceGetMigMode(board)[0])),
        compute_capability=None if capability is None else f"{capability[0]}.{capability[1]}",
    )


def _asked(nvml: Any, question: Any) -> Any:
    """The driver's answer, None when this board does not support the question."""
    try:
        return question()
    except nvml.NVMLError:
        return None


def _flag(value: Any) -> bool | None:
    return None if value is None else bool(value)


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
