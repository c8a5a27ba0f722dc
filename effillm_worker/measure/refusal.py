"""Where a framework's error becomes an answer: the one place that matches on error text."""

from __future__ import annotations

import errno

from effillm_server.contract.outcome import InfeasibleReason
from effillm_worker.engines.base import OutOfMemory, Unsupported

DEVICE_MEMORY = (
    "cuda out of memory",
    "cuda error: out of memory",
    "hip out of memory",
    "xpu out of memory",
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
    "cudaerrormemoryallocation",
    "error out of memory at line",  # bitsandbytes, csrc/ops.cu
)
HOST_MEMORY = (
    "defaultcpuallocator: can't allocate memory",
    "defaultcpuallocator: not enough memory",
    "cannot allocate memory",
    "std::bad_alloc",
    "unable to mmap",
)


class Refusal(Exception):
    """The cell cannot be measured here, and `reason` says in which way: an answer."""

    def __init__(self, reason: InfeasibleReason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def answer(error: BaseException) -> tuple[InfeasibleReason, str] | None:
    """What an error says about the cell: a reason and a sentence, or None when it is no answer but a fault."""
    match error:
        case OutOfMemory() | Refusal():
            return error.reason, str(error)
        case Unsupported():
            return InfeasibleReason.UNSUPPORTED, str(error)
        case MemoryError():
            return InfeasibleReason.OUT_OF_HOST_MEMORY, _first_line(error) or "the process could get no more memory"
        case OSError() if error.errno == errno.ENOMEM:
            return InfeasibleReason.OUT_OF_HOST_MEMORY, _first_line(error)
    return _by_text(error)


def _by_text(error: BaseException) -> tuple[InfeasibleReason, str] | None:
    text = f"{type(error).__name__}: {error}".lower()
    # torch.OutOfMemoryError is a device's; recognised by name because only the child's engine may import torch.
    if type(error).__name__ == "OutOfMemoryError" or any(phrase in text for phrase in DEVICE_MEMORY):
        return InfeasibleReason.OUT_OF_DEVICE_MEMORY, _first_line(error)
    if any(phrase in text for phrase in HOST_MEMORY):
        return InfeasibleReason.OUT_OF_HOST_MEMORY, _first_line(error)
    # Frameworks wrap an allocator's error in their own: the cause decides then.
    return answer(error.__cause__) if error.__cause__ is not None else None


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]
