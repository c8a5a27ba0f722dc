"""Conditions: a real competitor, and recorded /proc and /sys for what a test machine does not do."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from effillm_worker.meters import host
from effillm_worker.meters.conditions import Reading, Stretch, Watch, summarise
from effillm_worker.meters.energy import EnergyMeter
from effillm_worker.meters.gpu import GpuWatch
from effillm_worker.meters.host import CpuTimes, Usage
from tests.support.fake_nvml import FakeNvml

TICKS = host.TICKS_PER_S
START = Reading(
    at_s=100.0, cpu=CpuTimes(0, 0, 0, 2), tree_ticks=0, tree_swap_bytes=0, swapped_pages=7, clock_mhz=3000.0,
    throttle_events=4,
)  # fmt: skip
# Ten seconds later: both processors worked, three of twenty processor-seconds for others, one was stolen.
AFTER = replace(START, at_s=110.0, cpu=CpuTimes(18 * TICKS, TICKS, 20 * TICKS, 2), tree_ticks=15 * TICKS)


def test_others_are_what_the_childs_tree_did_not_use() -> None:
    watched = summarise([Stretch([START, AFTER])], 10, ()).watched
    assert watched["window_s"] == 10
    assert watched["tree_cpus"] == 1.5
    assert watched["others_cpus"] == pytest.approx(0.3)
    assert watched["steal_share"] == pytest.approx(0.05)
    assert watched["resolution_cpus"] == pytest.approx(3 / TICKS / 10)


def test_the_worst_second_is_kept_beside_the_mean() -> None:
    middle = replace(START, at_s=109.0, cpu=CpuTimes(16 * TICKS, 0, 18 * TICKS, 2), tree_ticks=15 * TICKS)
    watched = summarise([Stretch([START, middle, AFTER])], 10, ()).watched
    assert watched["others_cpus_max"] == pytest.approx(2.0)


def test_several_windows_are_one_result() -> None:
    watched = summarise([Stretch([START, AFTER]), Stretch([START, AFTER])], 10, ()).watched
    assert watched["window_s"] == 20 and watched["others_cpus"] == pytest.approx(0.3)


def test_swapping_throttling_and_clocks_are_taken_from_the_kernels_counters() -> None:
    worse = replace(AFTER, swapped_pages=107, tree_swap_bytes=4096, clock_mhz=2100.0, throttle_events=6)
    watched = summarise([Stretch([START, worse])], 10, ()).watched
    assert watched["machine_swap_bytes"] == 100 * os.sysconf("SC_PAGE_SIZE")
    assert watched["tree_swap_bytes"] == 4096
    assert watched["clock_mhz"] == {"min": 2100, "mean": 2550, "max": 3000}
    assert watched["clock_drop"] == pytest.approx(0.3)
    assert watched["processor_throttle_events"] == 2


def test_what_cannot_be_watched_is_listed_never_assumed_fine() -> None:
    blind = [replace(reading, swapped_pages=None, clock_mhz=None, throttle_events=None) for reading in (START, AFTER)]
    conditions = summarise([Stretch(blind)], 10, ())
    assert set(conditions.not_watched) == {"machine_swap_bytes", "processor_clock", "processor_throttle_events"}
    assert "machine_swap_bytes" not in conditions.watched
    assert "others_cpus" in summarise([], 10, ()).not_watched


def test_the_busiest_others_are_named_by_what_they_used_themselves() -> None:
    before = {10: Usage(1, "child", 0, 0), 20: Usage(1, "bash", 50, 0)}
    after = {
        10: Usage(1, "child", 900, 0),
        11: Usage(10, "child's child", 900, 0),
        20: Usage(1, "bash", 51, 90_000),  # has just reaped something that ran for minutes
        21: Usage(20, "spinner", 4 * TICKS, 0),
    }
    watched = summarise([Stretch([START, AFTER], before, after)], 10, ()).watched
    assert watched["top_others"] == [{"pid": 21, "name": "spinner", "cpus": 0.4}]


def test_a_spinning_process_is_seen_and_the_watcher_ends_with_its_window() -> None:
    code = "import sys\nfor _ in sys.stdin: pass"
    child = subprocess.Popen([sys.executable, "-I", "-c", code], stdin=subprocess.PIPE)
    watch = Watch(child.pid, (), EnergyMeter("none"))
    spinner = subprocess.Popen([sys.executable, "-I", "-c", "while True: pass"])
    try:
        threads = threading.active_count()
        watch.open()
        watch.open()  # twice is once
        assert threading.active_count() == threads + 1
        with pytest.raises(subprocess.TimeoutExpired):
            spinner.wait(1.5)
        watch.close()
        watch.close()
        assert threading.active_count() == threads
    finally:
        spinner.kill()
        spinner.wait()
        child.communicate()
    watched = watch.conditions().watched
    assert watched["others_cpus"] > 0.3 and watched["tree_cpus"] < 0.1
    assert 2 <= watched["readings"] <= 4  # once a second


def test_readings_follow_the_kernels_formats(tmp_path: Path) -> None:
    (tmp_path / "stat").write_text("cpu  9 9\ncpu0 1 2 3 4 5 6 7 8 0 0\ncpu1 10 0 0 90 0 0 0 0 1 0\nintr 5\n")
    assert host.cpu_times((), tmp_path) == CpuTimes(busy=29, steal=8, total=136, count=2)
    assert host.cpu_times((1,), tmp_path) == CpuTimes(busy=10, steal=0, total=100, count=1)
    (tmp_path / "vmstat").write_text("pgpgin 5\npswpin 3\npswpout 4\n")
    assert host.swapped_pages(tmp_path) == 7
    entry = tmp_path / "42"
    entry.mkdir()
    (entry / "stat").write_text("42 (odd) name (x) S 7 0 0 0 0 0 0 0 0 0 100 20 3 4 0 0\n")
    (entry / "status").write_text("VmSwap:\t  12 kB\n")
    assert host.usage(tmp_path) == {42: Usage(7, "odd) name (x", 120, 7)}
    assert host.process_ticks(42, tmp_path) == 127 and host.process_ticks(43, tmp_path) == 0
    assert host.swapped_bytes(42, tmp_path) == 12 * 1024 and host.swapped_bytes(43, tmp_path) == 0
    cpu = tmp_path / "devices/system/cpu/cpu0"
    (cpu / "cpufreq").mkdir(parents=True)
    (cpu / "thermal_throttle").mkdir()
    (cpu / "cpufreq/scaling_cur_freq").write_text("2600000\n")
    (cpu / "thermal_throttle/core_throttle_count").write_text("3\n")
    assert host.clock_mhz((0,), tmp_path) == 2600 and host.throttle_events(tmp_path) == 3
    assert host.clock_mhz((5,), tmp_path) is None and host.throttle_events(tmp_path / "none") is None


def test_gpu_conditions_come_from_the_driver() -> None:
    gpu = FakeNvml(running={10: 5, 99: 5}, throttle=0x1 | 0x20, temperature=83)
    watch = GpuWatch(gpu, sees_our_pids=True)
    first = watch.sample([10])
    gpu.throttle, gpu.running, gpu.sm_mhz = 0x4, {10: 5}, 900
    second = watch.sample([10])
    assert first is not None and second is not None
    conditions = summarise([Stretch([replace(START, gpu=first), replace(AFTER, gpu=second)])], 10, (), watch)
    assert conditions.watched["gpu_throttle"] == ["sw_power_cap", "sw_thermal"]
    assert conditions.watched["gpu_foreign_processes"] == 1
    assert conditions.watched["gpu_temperature_c"] == {"min": 83, "mean": 83, "max": 83}
    assert conditions.watched["gpu_sm_mhz"] == {"min": 900, "mean": 1200, "max": 1500}


def test_in_a_container_one_process_on_the_gpu_is_taken_for_ours() -> None:
    watch = GpuWatch(FakeNvml(running={90_001: None}), sees_our_pids=False)
    sample = watch.sample([7])
    assert sample is not None and sample.foreign == 0
    crowded = GpuWatch(FakeNvml(running={90_001: None, 90_002: None}), sees_our_pids=False).sample([7])
    assert crowded is not None and crowded.foreign == 1


def test_a_gpu_without_driver_is_listed_as_not_watched() -> None:
    watch = GpuWatch(None, "NVML: driver not loaded")
    conditions = summarise([Stretch([START, AFTER])], 10, (), watch)
    assert conditions.not_watched["gpu_throttle"] == "NVML: driver not loaded"
    silent = GpuWatch(FakeNvml(silent=frozenset({"throttle_reasons"})))
    sample = silent.sample([10])
    assert sample is not None
    missing = summarise([Stretch([replace(START, gpu=sample), AFTER])], 10, (), silent).not_watched
    assert missing == {"gpu_throttle": "Not Supported"}
