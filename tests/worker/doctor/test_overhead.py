from __future__ import annotations

import fcntl
import math
import os
import time
from pathlib import Path

import pytest

from effillm_server.settings import Settings
from effillm_worker import paired
from effillm_worker.doctor import overhead
from effillm_worker.doctor.noise import NotMeasured, cell_of
from effillm_worker.doctor.overhead import Overhead
from effillm_worker.paired import Ratio
from tests.support.isolation import device

BOX = device(processors=tuple(os.sched_getaffinity(0)))


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "locks").mkdir()
    return Settings(data_dir=tmp_path / "data", lock_dir=tmp_path / "locks")


@pytest.fixture(autouse=True)
def fake_arm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paired, "ARM", "tests.support.fake_arm")


def plays(monkeypatch: pytest.MonkeyPatch, manner: str) -> None:
    cell = cell_of(BOX).model_copy(update={"revision": manner})
    monkeypatch.setattr(overhead, "cell_of", lambda _: cell)


def test_half_a_percent_in_every_pair_is_decided_and_below_one(settings: Settings) -> None:
    found = overhead.measure(BOX, settings, time.monotonic() + 300, print)
    assert found.verdict == "below 1 %"
    assert found.pairs >= overhead.FEWEST_PAIRS
    assert found.ratio.mean == pytest.approx(1.005, abs=1e-3)
    assert found.document()["overhead"] == pytest.approx(0.005, abs=1e-3)


def test_pairs_that_wander_stay_undecided_however_many(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    plays(monkeypatch, "wanders")
    monkeypatch.setattr(overhead, "MOST_PAIRS", 12)
    found = overhead.measure(BOX, settings, time.monotonic() + 300, print)
    assert (found.pairs, found.verdict) == (12, "undecided")


def test_an_arm_that_ends_is_quoted(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    plays(monkeypatch, "dies")
    with pytest.raises(NotMeasured, match="the model does not fit"):
        overhead.measure(BOX, settings, time.monotonic() + 300, print)


def test_no_time_is_no_figure(settings: Settings) -> None:
    with pytest.raises(NotMeasured, match="pairs came to an end in the time"):
        overhead.measure(BOX, settings, time.monotonic() - 1, print)


def test_a_device_that_somebody_holds_is_left_alone(settings: Settings) -> None:
    with (settings.lock_dir / f"{BOX.id}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(NotMeasured, match="held by another process"):
            overhead.measure(BOX, settings, time.monotonic() + 300, print)


def test_a_wide_interval_or_few_pairs_decide_nothing() -> None:
    tight, wide = Ratio.of([math.log(1.02)] * 6), Ratio(1.0, 0.98, 1.02)
    assert Overhead("", 6, tight).verdict == "above 1 %"
    assert Overhead("", 5, tight).verdict == "undecided"
    assert Overhead("", 50, wide).verdict == "undecided"
