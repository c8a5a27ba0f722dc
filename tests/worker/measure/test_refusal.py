from __future__ import annotations

import errno

import pytest

from effillm_server.contract.outcome import InfeasibleReason
from effillm_worker.engines.base import OutOfMemory, Unsupported
from effillm_worker.measure.refusal import Refusal, answer

DEVICE, HOST = InfeasibleReason.OUT_OF_DEVICE_MEMORY, InfeasibleReason.OUT_OF_HOST_MEMORY


class OutOfMemoryError(RuntimeError):
    """Named like torch's own."""


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), DEVICE),
        (RuntimeError("CUDA error: out of memory"), DEVICE),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), DEVICE),
        (RuntimeError("Error out of memory at line 380 in file /src/csrc/ops.cu"), DEVICE),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory"),
            HOST,
        ),
        (RuntimeError("unable to mmap 1024 bytes from file <model.safetensors>: Cannot allocate memory (12)"), HOST),
        (MemoryError(), HOST),
        (MemoryError("std::bad_alloc"), HOST),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), HOST),
        (OutOfMemory(DEVICE, "declared"), DEVICE),
        (Unsupported("no kernels"), InfeasibleReason.UNSUPPORTED),
        (Refusal(InfeasibleReason.TIME_LIMIT, "too slow"), InfeasibleReason.TIME_LIMIT),
    ],
)
def test_errors_that_answer_the_cell(error: BaseException, reason: InfeasibleReason) -> None:
    found = answer(error)
    assert found is not None
    assert found[0] is reason
    assert found[1]


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        ValueError("out of range"),
        OSError(errno.ENOENT, "No such file"),
        KeyError("memory"),
    ],
)
def test_other_errors_are_no_answer(error: BaseException) -> None:
    assert answer(error) is None


def test_error_wrapped_by_a_framework_is_judged_by_its_cause() -> None:
    wrapped = RuntimeError("generate failed")
    wrapped.__cause__ = OutOfMemoryError("CUDA out of memory")
    assert answer(wrapped) == (DEVICE, "CUDA out of memory")


def test_only_the_first_line_of_a_long_message_is_kept() -> None:
    assert answer(OutOfMemoryError("CUDA out of memory.\nSee documentation")) == (DEVICE, "CUDA out of memory.")
