"""Energy: only from a counter, only inside the window, else null with the reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from effillm_worker.meters.energy import EnergyMeter, NvmlEnergy, Rapl, find_counter
from tests.support.fake_nvml import FakeNvml


def package(folder: Path, name: str, microjoules: int, range_uj: int = 1_000_000_000) -> Path:
    zone = folder / name
    zone.mkdir(parents=True)
    (zone / "energy_uj").write_text(f"{microjoules}\n")
    (zone / "max_energy_range_uj").write_text(f"{range_uj}\n")
    return zone


def test_rapl_sums_packages_and_leaves_their_parts_out(tmp_path: Path) -> None:
    first, second = package(tmp_path, "intel-rapl:0", 5_000_000), package(tmp_path, "intel-rapl:1", 7_000_000)
    package(tmp_path, "intel-rapl:0:0", 1)
    package(tmp_path, "intel-rapl-mmio:0", 1)
    counter = find_counter(None, tmp_path)
    assert isinstance(counter, Rapl)
    assert counter.packages == (first, second)
    meter = EnergyMeter(counter)
    meter.open()
    (first / "energy_uj").write_text("9000000")
    (second / "energy_uj").write_text("8000000")
    meter.close()
    assert meter.result == (pytest.approx(5.0), "RAPL package counters, whole machine")


def test_a_counter_that_wraps_inside_the_window_is_followed(tmp_path: Path) -> None:
    zone = package(tmp_path, "intel-rapl:0", 90_000_000, range_uj=100_000_000)
    meter = EnergyMeter(Rapl((zone,)))
    meter.open()
    for microjoules in (99_000_000, 8_000_000, 50_000_000):
        (zone / "energy_uj").write_text(str(microjoules))
        meter.tick()
    meter.close()
    assert meter.result[0] == pytest.approx(9 + 9 + 42)


def test_what_is_used_between_two_windows_does_not_count() -> None:
    meter = EnergyMeter(NvmlEnergy(FakeNvml(joules=[10.0, 14.0, 100.0, 103.0])))
    for _ in range(2):
        meter.open()
        meter.close()
    assert meter.result == (pytest.approx(7.0), "NVML total energy counter of the GPU, whole board")


def test_no_counter_is_null_with_the_reason(tmp_path: Path) -> None:
    assert "does not exist" in str(find_counter(None, tmp_path / "none"))
    assert "no RAPL package" in str(find_counter(None, tmp_path))
    assert "Not Supported" in str(find_counter(FakeNvml(silent=frozenset({"energy_j"})), tmp_path))
    meter = EnergyMeter("not readable by this user")
    meter.open()
    meter.close()
    assert meter.result == (None, "not readable by this user")


def test_a_counter_that_fails_inside_the_window_gives_no_half_figure() -> None:
    gpu = FakeNvml(joules=[1.0, 2.0])
    meter = EnergyMeter(NvmlEnergy(gpu))
    meter.open()
    gpu.silent = frozenset({"energy_j"})
    meter.close()
    joules, reason = meter.result
    assert joules is None and "failed inside the window: Not Supported" in reason


def test_without_a_window_there_is_no_energy() -> None:
    assert EnergyMeter(NvmlEnergy(FakeNvml())).result == (None, "no window was measured")
