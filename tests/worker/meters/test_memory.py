"""Memory of a process tree from outside: against /proc's own figures and a recorded tree."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from effillm_server.contract.outcome import MemoryReading
from effillm_worker.meters.memory import TreeMeter, median, tree
from tests.support.fake_nvml import FakeNvml

MIB = 2**20
HOLDER = """
import sys
for line in sys.stdin:
    size = int(line)
    block = bytearray(size)
    block[::4096] = b'x' * len(block[::4096])
    del block
    print(flush=True)
"""


@contextmanager
def holder() -> Iterator[tuple[int, subprocess.Popen[str]]]:
    """A process that takes and gives back as many bytes as it is told."""
    command = [sys.executable, "-I", "-c", HOLDER]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        touch(process, 4096)
        yield process.pid, process
    finally:
        process.communicate()


def touch(process: subprocess.Popen[str], size: int) -> None:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(f"{size}\n")
    process.stdin.flush()
    process.stdout.readline()


def recorded(folder: Path, processes: dict[int, tuple[int, int, int]]) -> Path:
    """A /proc with these processes: id -> (parent, resident kB, peak kB)."""
    for pid, (parent, rss, peak) in processes.items():
        entry = folder / str(pid)
        entry.mkdir(parents=True)
        (entry / "stat").write_text(f"{pid} (a name) with) S {parent} " + "0 " * 40)
        (entry / "status").write_text(
            f"Name:\tx\nVmHWM:\t{peak} kB\nVmRSS:\t{rss} kB\nRssFile:\t{rss // 2} kB\nVmSwap:\t0 kB\n"
        )
        (entry / "smaps_rollup").write_text(f"x\nRss: {rss} kB\nPss: {rss - 1} kB\n")
        (entry / "clear_refs").write_text("")
    return folder


def test_the_high_water_mark_catches_what_sampling_would_miss_and_is_reset_per_stage() -> None:
    with holder() as (pid, process):
        meter = TreeMeter(pid)
        assert meter.reset_peak()
        before = meter.read({})
        touch(process, 48 * MIB)
        after = meter.read({}, peak=True)
        assert before.ram_bytes is not None and after.ram_peak_bytes is not None and after.ram_bytes is not None
        assert after.ram_peak_bytes - before.ram_bytes == pytest.approx(48 * MIB, abs=MIB)
        assert after.ram_bytes - before.ram_bytes < 4 * MIB
        meter.reset_peak()
        again = meter.read({}, peak=True)
        assert again.ram_peak_bytes is not None and again.ram_peak_bytes < after.ram_peak_bytes - 40 * MIB


def test_a_tree_is_summed_and_strangers_are_left_out(tmp_path: Path) -> None:
    proc = recorded(tmp_path, {10: (1, 100, 200), 11: (10, 30, 40), 12: (11, 5, 6), 20: (1, 999, 999)})
    meter = TreeMeter(10, proc=proc)
    reading = meter.read({})
    assert set(tree(10, proc)) == {10, 11, 12}
    assert reading.ram_bytes == 135 * 1024
    assert reading.ram_peak_bytes == 246 * 1024
    assert reading.ram_pss_bytes == 132 * 1024
    assert meter.file_backed_bytes() == (50 + 15 + 2) * 1024
    assert reading.ram_source is not None and reading.ram_source.endswith("3 processes")
    assert meter.reset_peak() and (proc / "12" / "clear_refs").read_text() == "5"


def test_device_memory_comes_from_allocator_and_driver(tmp_path: Path) -> None:
    proc = recorded(tmp_path, {10: (1, 100, 200), 11: (10, 30, 40)})
    gpu = FakeNvml(used_bytes=900, running={10: 500, 11: 100, 77: 300})
    said = {"allocated": 400, "reserved": 450, "peak_allocated": 440, "peak_reserved": 460}
    now, peak = TreeMeter(10, gpu, proc).read(said), TreeMeter(10, gpu, proc).read(said, peak=True)
    assert (now.vram_bytes, now.vram_reserved_bytes) == (400, 450)
    assert (peak.vram_bytes, peak.vram_reserved_bytes) == (440, 460)
    assert (now.vram_process_bytes, now.vram_device_used_bytes) == (600, 900)
    silent = TreeMeter(10, FakeNvml(silent=frozenset({"processes"})), proc).read({})
    assert silent.vram_process_bytes is None and silent.vram_device_used_bytes is None


def test_a_process_that_is_gone_has_no_reading_rather_than_zero(tmp_path: Path) -> None:
    reading = TreeMeter(10, proc=tmp_path).read({})
    assert reading.ram_bytes is None and reading.ram_pss_bytes is None


def test_the_median_reading_is_taken_figure_by_figure() -> None:
    readings = [MemoryReading(ram_bytes=size, ram_pss_bytes=10 - size, ram_source="s") for size in (3, 1, 2)]
    assert median(readings) == MemoryReading(ram_bytes=2, ram_pss_bytes=8, ram_source="s")
    assert median([]) is None
