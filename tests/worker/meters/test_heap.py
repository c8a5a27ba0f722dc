"""The C library's own count of the heap, against blocks of known size."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

from effillm_worker.meters.heap import HeapPeak, read

MIB = 2**20


def test_the_peak_remembers_a_block_that_went_back_to_the_kernel() -> None:
    before, peak = read(), HeapPeak()
    assert before is not None
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    libc.free.argtypes = [ctypes.c_void_p]
    block = libc.malloc(ctypes.c_size_t(64 * MIB))  # above the largest dynamic threshold: mapped, and unmapped by free
    peak.sample()
    libc.free(block)
    peak.sample()
    after = read()
    assert peak.bytes is not None and after is not None
    assert peak.bytes - before.footprint == pytest.approx(64 * MIB, abs=MIB)
    assert after.footprint - before.footprint < MIB


def test_giving_free_blocks_back_lowers_the_resident_set() -> None:
    # In a process of its own: another's heap is not ours to shake.
    code = (
        "import ctypes\n"
        "from pathlib import Path\n"
        "from effillm_worker.meters.heap import trim\n"
        "libc = ctypes.CDLL(None)\n"
        "libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]\n"
        "pages = lambda: int(Path('/proc/self/statm').read_text().split()[1])\n"
        "blocks = [libc.malloc(100_000) for _ in range(400)]\n"
        "for block in blocks: ctypes.memset(block, 1, 100_000)\n"
        "for block in blocks[:-1]: libc.free(block)\n"  # the last one keeps the rest from the end of the heap
        "full = pages()\n"
        "trim()\n"
        "print((full - pages()) * 4096)\n"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert int(said) > 30 * MIB
