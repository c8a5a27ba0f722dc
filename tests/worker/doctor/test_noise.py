from __future__ import annotations

import fcntl
import math
import os
import time
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from effillm_server.contract.sweep import Engine
from effillm_server.settings import Settings
from effillm_worker import bench
from effillm_worker.doctor import noise
from effillm_worker.doctor.noise import NotMeasured, Process
from tests.support.isolation import device

BOX = device(processors=tuple(os.sched_getaffinity(0)))


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data", lock_dir=tmp_path / "locks")


def process(speed: float, within: float = 0.01) -> Process:
    return Process(speed, within, 5, "valid", (), 1.0)


def test_the_noise_floor_is_root_two_times_the_spread_of_the_logarithms() -> None:
    speeds = [100.0, 103.0, 98.0, 101.0]
    found = noise.summary([process(speed) for speed in speeds], "a cell")
    sd = float(np.std(np.log(speeds), ddof=1))
    assert found.relative_sd == pytest.approx(sd)
    document = found.document()
    assert document["noise_floor"] == pytest.approx(math.sqrt(2) * sd)
    assert document["degrees"] == 3
    assert document["noise_floor_ci95"] == pytest.approx([math.sqrt(2) * x for x in document["relative_sd_ci95"]])


def test_the_spread_within_processes_is_pooled_by_their_degrees_of_freedom() -> None:
    found = noise.summary([process(100, within=0.03), process(100, within=0.04)], "a cell")
    assert found.within_relative_sd == pytest.approx(math.sqrt((0.03**2 + 0.04**2) / 2))


def test_the_interval_holds_the_true_spread_in_95_of_100_sets_of_processes() -> None:
    random = np.random.default_rng(7)
    spreads = np.std(random.normal(0, 0.02, (4000, 5)), axis=1, ddof=1)
    low, high = noise.interval(1.0, 4)  # proportional to the spread
    hits = int(((low * spreads <= 0.02) & (high * spreads >= 0.02)).sum())
    assert stats.binomtest(hits, 4000, 0.95).pvalue > 0.001


def test_fresh_processes_measure_the_same_cell_one_after_the_other(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulated = noise.cell_of(BOX).model_copy(update={"engine": Engine.SIMULATED})
    monkeypatch.setattr(noise, "cell_of", lambda _: simulated)
    said: list[str] = []
    found = noise.measure(BOX, settings, time.monotonic() + 300, 2, said.append)
    assert len(found.processes) == len(said) == 2
    # A simulated cell declares its times: equal in both, so there is no spread at all.
    assert found.relative_sd == found.low == found.high == pytest.approx(0)
    assert all(each.throughput_tok_s > 0 for each in found.processes)


def test_a_process_that_does_not_end_in_time_is_ended_and_said_so(settings: Settings) -> None:
    with pytest.raises(NotMeasured, match="took longer than the 1 s"):
        noise.measure(BOX, settings, time.monotonic() + 1.0, 2, print)


def test_a_process_whose_time_is_over_before_it_has_begun_is_ended_all_the_same(settings: Settings) -> None:
    assert "took longer than the 0 s" in str(noise.one_process(BOX, settings, 0.0))


def test_no_time_at_all_measures_nothing(settings: Settings) -> None:
    with pytest.raises(NotMeasured, match="0 of at least 2"):
        noise.measure(BOX, settings, time.monotonic() - 1, 2, print)


def test_a_device_that_somebody_holds_is_left_alone(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "LOCK_PATIENCE_S", 0.0)
    settings.lock_dir.mkdir()
    with (settings.lock_dir / f"{BOX.id}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(NotMeasured, match="another process holds the device"):
            noise.measure(BOX, settings, time.monotonic() + 300, 2, print)
