"""What the C library's allocator holds: on a CPU the tensors of a framework come from it."""

from __future__ import annotations

import ctypes
from contextlib import suppress
from dataclasses import dataclass
from functools import cache


class _MallInfo2(ctypes.Structure):
    """`struct mallinfo2` of glibc 2.33 and later, see mallinfo(3)."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
        )
    ]  # fmt: skip


@dataclass(frozen=True)
class Heap:
    """Bytes the allocator has taken from the kernel and not given back, and how many of them are in free blocks."""

    footprint: int
    free: int


def read() -> Heap | None:
    """The heap now; None without glibc 2.33."""
    function = _mallinfo2()
    if function is None:
        return None
    info = function()
    return Heap(footprint=int(info.arena + info.hblkhd), free=int(info.fordblks))


@dataclass(frozen=True)
class HeapStages:
    """The heap at `baseline` and at `loaded`."""

    baseline: Heap | None = None
    loaded: Heap | None = None


@dataclass
class HeapPeak:
    """The highest footprint among the samples: freed blocks that went back to the kernel are seen only while they live."""

    bytes: int | None = None

    def sample(self) -> None:
        """Take one sample, some tens of microseconds."""
        now = read()
        if now is not None:
            self.bytes = max(now.footprint, self.bytes or 0)


def trim() -> None:
    """Give free blocks back to the kernel: what emptying the allocator's cache means on a CPU. Nothing without glibc."""
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


@cache
def _mallinfo2() -> ctypes._NamedFuncPointer | None:
    try:
        function = ctypes.CDLL(None).mallinfo2
    except (AttributeError, OSError):
        return None
    function.restype = _MallInfo2
    return function
