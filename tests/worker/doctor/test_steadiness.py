from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from effillm_server.contract.fingerprint import DeviceDeclaration
from effillm_worker.doctor import steadiness
from tests.support.isolation import device

QUIET: dict[str, Any] = {
    "others_cpus": 0.0, "resolution_cpus": 0.0, "processors": 2, "top_others": [], "steal_share": 0.0,
}  # fmt: skip
CPU = "sys/devices/system/cpu"


def topics(root: Path, of: DeviceDeclaration | None = None) -> list[str]:
    return [advice.topic for advice in steadiness.advice(of or device(processors=(0, 1)), root)]


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    watched = dict(QUIET)
    monkeypatch.setattr(steadiness, "other_load", lambda *_: watched)
    return watched


def put(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_a_quiet_bare_machine_has_nothing_to_change(tmp_path: Path) -> None:
    put(tmp_path, f"{CPU}/cpu0/cpufreq/scaling_governor", "performance\n")
    put(tmp_path, f"{CPU}/intel_pstate/no_turbo", "1\n")
    put(tmp_path, "proc/meminfo", "SwapTotal: 0 kB\nSwapFree: 0 kB\n")
    assert topics(tmp_path) == []


@pytest.mark.parametrize(
    ("file", "text", "topic"),
    [
        (f"{CPU}/cpu1/cpufreq/scaling_governor", "powersave\n", "governor"),
        (f"{CPU}/intel_pstate/no_turbo", "0\n", "turbo"),
        (f"{CPU}/cpufreq/boost", "1\n", "turbo"),
        ("proc/meminfo", "SwapTotal: 2000 kB\nSwapFree: 1000 kB\n", "swap"),
        ("proc/cpuinfo", "flags\t: fpu hypervisor\n", "virtual machine"),
        ("sys/devices/system/clocksource/clocksource0/current_clocksource", "hpet\n", "clock source"),
    ],
)
def test_each_disturbance_is_found_in_its_file(tmp_path: Path, file: str, text: str, topic: str) -> None:
    put(tmp_path, file, text)
    assert topics(tmp_path) == [topic]


def test_other_processes_above_the_verdict_s_limit_are_named(tmp_path: Path, quiet: dict[str, Any]) -> None:
    quiet |= {"others_cpus": 0.09, "top_others": [{"name": "backup", "cpus": 0.09}]}
    assert topics(tmp_path) == []
    quiet |= {"others_cpus": 0.5}
    (found,) = steadiness.advice(device(processors=(0, 1)), tmp_path)
    assert found.topic == "other load"
    assert "0.50 of 2 processors (backup 0.09)" in found.found
    assert "above 0.10" in found.change


def test_load_below_the_resolution_of_the_kernel_s_clock_is_no_load(tmp_path: Path, quiet: dict[str, Any]) -> None:
    quiet |= {"others_cpus": 0.5, "resolution_cpus": 0.45}
    assert topics(tmp_path) == []


def test_steal_goes_before_the_general_warning_about_virtual_machines(tmp_path: Path, quiet: dict[str, Any]) -> None:
    quiet["steal_share"] = 0.08
    put(tmp_path, "proc/cpuinfo", "flags\t: hypervisor\n")
    assert topics(tmp_path) == ["steal"]


def test_second_threads_of_cores_and_memory_nodes_are_told_of(tmp_path: Path) -> None:
    box = device().hardware
    processor = box.processor.model_copy(update={"logical_cores": 4, "physical_cores": 2, "numa_nodes": 2})
    large = device(processors=(0, 1), hardware=box.model_copy(update={"processor": processor}))
    assert topics(tmp_path, large) == ["SMT", "memory nodes"]
    put(tmp_path, f"{CPU}/smt/active", "0\n")
    assert topics(tmp_path, large) == ["memory nodes"]


def test_a_gpu_s_clocks_can_be_held(tmp_path: Path) -> None:
    assert topics(tmp_path, device(processors=(0,), gpu_uuid="GPU-1")) == ["GPU clocks"]


def test_the_present_load_is_watched_as_beside_a_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    watched = steadiness.other_load(device(), look_s=0.05)
    assert {"others_cpus", "resolution_cpus", "processors", "top_others", "steal_share"} <= set(watched)
