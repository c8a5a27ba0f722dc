from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from effillm_server.settings import Settings
from effillm_worker import limits
from effillm_worker.doctor import sight
from tests.support.fake_nvml import FakeNvml
from tests.support.isolation import device

Write = Callable[[str, str], None]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def written(name: str, text: str) -> None:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    return written


def test_this_machine_gets_an_answer_for_every_instrument_and_a_way_out_of_every_no(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "data", lock_dir=tmp_path / "locks")
    checks = sight.look(device(processors=tuple(os.sched_getaffinity(0))), settings)
    assert len({check.name for check in checks}) == len(checks) == 14
    for check in checks:
        assert check.text.startswith("yes") or ("no, because" in check.text and check.why and check.change)


def test_looking_leaves_no_control_group_and_no_file_behind(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "data", lock_dir=tmp_path / "locks")
    sight.look(device(), settings)
    assert list((tmp_path / "data").iterdir()) == list((tmp_path / "locks").iterdir()) == []
    places = limits._places(Path("/proc/self/cgroup"), Path("/proc/self/mountinfo"))
    made = [group for parents, _ in places for parent in parents for group in parent.glob("effillm-doctor-*")]
    assert made == []


def test_rapl_that_is_not_there_is_told_with_its_path(tmp_path: Path) -> None:
    check = sight.device_energy(device(), tmp_path)
    assert not check.can
    assert str(tmp_path / "sys/class/powercap") in check.text
    assert "; to change that: measure on bare metal" in check.text


def test_rapl_that_may_be_read_counts(tmp_path: Path, write: Write) -> None:
    write("sys/class/powercap/intel-rapl:0/energy_uj", "1000\n")
    write("sys/class/powercap/intel-rapl:0/max_energy_range_uj", "262143328850\n")
    assert sight.device_energy(device(), tmp_path).can


def test_rapl_that_only_root_may_read_is_answered_with_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> str:
        return "RAPL package counters, whole machine: not readable by this user (/sys/…)"

    monkeypatch.setattr(sight.energy, "find_counter", refused)
    assert "chmod a+r" in sight.device_energy(device(), tmp_path).change


def test_a_clock_shown_by_the_kernel_is_a_yes_with_its_value(tmp_path: Path, write: Write) -> None:
    write("sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq", "2400000\n")
    assert sight.frequency(device(processors=(0,)), tmp_path).text == "yes: 2400 MHz now"


def test_a_clock_not_shown_is_a_no(tmp_path: Path) -> None:
    assert "no cpufreq" in sight.frequency(device(processors=(0,)), tmp_path).text


def test_steal_of_zero_in_a_virtual_machine_carries_its_doubt(tmp_path: Path, write: Write) -> None:
    write("proc/stat", "cpu 1 0 1 8 0 0 0 0\ncpu0 1 0 1 8 0 0 0 0\n")
    assert "hides" not in sight.steal(device(), tmp_path).text
    write("proc/cpuinfo", "flags : fpu hypervisor\n")
    assert "hides it shows 0 as well" in sight.steal(device(), tmp_path).text


def test_steal_is_a_share_of_all_time(tmp_path: Path, write: Write) -> None:
    write("proc/stat", "cpu0 10 0 10 75 0 0 0 5\n")
    assert sight.steal(device(), tmp_path).found == "5.0% since the start of the machine"


def test_memory_without_smaps_rollup_or_clear_refs_is_two_noes(tmp_path: Path, write: Write) -> None:
    pid = os.getpid()
    write(f"proc/{pid}/stat", f"{pid} (python) S 1 0 0")
    write(f"proc/{pid}/status", "VmHWM:\t 100 kB\nVmRSS:\t 90 kB\n")
    (tmp_path / f"proc/{pid}/clear_refs").mkdir()
    pss, peak = sight.memory(tmp_path)
    assert not pss.can and not peak.can
    assert "peaks are then those since the process began" in peak.text


def test_a_mark_that_the_kernel_does_not_set_back_is_noticed(tmp_path: Path, write: Write) -> None:
    pid = os.getpid()
    write(f"proc/{pid}/stat", f"{pid} (python) S 1 0 0")
    write(f"proc/{pid}/status", "VmHWM:\t 100 kB\nVmRSS:\t 90 kB\n")
    write(f"proc/{pid}/clear_refs", "")
    _, peak = sight.memory(tmp_path)
    assert "does not fall" in peak.text


def test_a_folder_that_cannot_be_written_names_the_setting(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    check = sight.folder("device locks", tmp_path / "file" / "locks", "EFFILLM_LOCK_DIR", "")
    assert not check.can
    assert "EFFILLM_LOCK_DIR" in check.change


def test_a_library_that_fakes_time_is_found(tmp_path: Path, write: Write) -> None:
    assert sight.real_clock(tmp_path).can
    write("proc/self/maps", "7f00-7f01 r-xp 0 08:01 1 /usr/lib/faketime/libfaketime.so.1\n")
    assert "falsifies every time" in sight.real_clock(tmp_path).text


def test_a_gpu_is_looked_at_through_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sight, "NvmlGpu", lambda uuid: FakeNvml())
    gpu = device(gpu_uuid="GPU-1")
    assert sight.nvml(gpu).can
    assert sight.device_energy(gpu).found.startswith("NVML total energy counter")


def test_a_gpu_whose_driver_does_not_answer_is_a_no(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(uuid: str) -> None:
        raise sight.NvmlError("GPU is lost")

    monkeypatch.setattr(sight, "NvmlGpu", gone)
    gpu = device(gpu_uuid="GPU-1")
    assert "GPU is lost" in sight.nvml(gpu).text
    assert "GPU is lost" in sight.device_energy(gpu).text
