"""NVIDIA's management library as pynvml offers it, with boards of the test's choice."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest


class NVMLError(Exception):
    """What pynvml raises for everything."""


@dataclass(frozen=True)
class Board:
    name: str
    memory_bytes: int = 16 * 2**30
    slices: tuple[str, ...] = ()
    unsupported: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Handle:
    index: int
    board: Board
    slice: int | None = None


class FakePynvml:
    """The calls that `effillm_worker.gpus` makes."""

    NVMLError = NVMLError

    def __init__(self, boards: Sequence[Board], *, has_driver: bool = True) -> None:
        self._boards = boards
        self._has_driver = has_driver

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "pynvml", self)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def nvmlInit(self) -> None:  # noqa: N802 - NVIDIA's names, here and below
        if not self._has_driver:
            raise NVMLError("Driver Not Loaded")

    def nvmlShutdown(self) -> None:  # noqa: N802
        pass

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return len(self._boards)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Handle:  # noqa: N802
        return Handle(index, self._boards[index])

    def nvmlDeviceGetName(self, handle: Handle) -> str:  # noqa: N802
        suffix = "" if handle.slice is None else f" MIG {handle.board.slices[handle.slice]}"
        return handle.board.name + suffix

    def nvmlDeviceGetUUID(self, handle: Handle) -> str:  # noqa: N802
        return f"GPU-{handle.index:04d}" if handle.slice is None else f"MIG-{handle.index:04d}-{handle.slice}"

    def nvmlDeviceGetMemoryInfo(self, handle: Handle) -> Any:  # noqa: N802
        return SimpleNamespace(total=handle.board.memory_bytes)

    def nvmlSystemGetDriverVersion(self) -> str:  # noqa: N802
        return "570.10"

    def nvmlSystemGetCudaDriverVersion_v2(self) -> int:  # noqa: N802
        return 12080

    def nvmlDeviceGetEnforcedPowerLimit(self, handle: Handle) -> int:  # noqa: N802
        return int(self._answer(handle, "power", 450_000))

    def nvmlDeviceGetCudaComputeCapability(self, handle: Handle) -> tuple[int, int]:  # noqa: N802
        self._answer(handle, "capability", None)
        return (8, 9)

    def nvmlDeviceGetMaxClockInfo(self, handle: Handle, kind: int) -> int:  # noqa: N802
        return 2100 + kind

    def nvmlDeviceGetMaxPcieLinkGeneration(self, handle: Handle) -> int:  # noqa: N802
        return 4

    def nvmlDeviceGetMaxPcieLinkWidth(self, handle: Handle) -> int:  # noqa: N802
        return 16

    def nvmlDeviceGetEccMode(self, handle: Handle) -> list[int]:  # noqa: N802
        self._answer(handle, "ecc", None)
        return [1, 1]

    def nvmlDeviceGetMigMode(self, handle: Handle) -> list[int]:  # noqa: N802
        self._answer(handle, "mig", None)
        return [int(bool(handle.board.slices))] * 2

    def nvmlDeviceGetMaxMigDeviceCount(self, handle: Handle) -> int:  # noqa: N802
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle: Handle, index: int) -> Handle:  # noqa: N802
        if index >= len(handle.board.slices):
            raise NVMLError("Not Found")
        return Handle(handle.index, handle.board, index)

    def _answer(self, handle: Handle, question: str, value: object) -> Any:
        if question in handle.board.unsupported:
            raise NVMLError("Not Supported")
        return value
