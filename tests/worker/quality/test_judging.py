"""Quality from the actor's side: asked once for a load group, and never at the cost of what was measured."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from effillm_server.contract.job import Cell, Lease
from effillm_server.contract.outcome import Fault, FaultKind, Measured
from effillm_server.contract.quality import Quality, QualityPlan
from effillm_server.contract.sweep import Isolation, MeasurementPlan
from effillm_server.settings import Settings
from effillm_worker.bench import LOAD_DEADLINE_S, Bench
from effillm_worker.isolate import Child
from effillm_worker.messages import READING_S, CellRecord, Judge, Judged, Open, Opened, Progress
from effillm_worker.quality import reference
from tests.support import trained
from tests.support.child import child_process, opening
from tests.support.child import run as measure_this
from tests.support.fake_engine import cell
from tests.support.isolation import device, opened, run

PLAN = QualityPlan()
JUDGE = Judge(plan=PLAN, time_limit_s=60.0)


def test_quality_comes_into_the_childs_record_and_slow_windows_are_no_hang(tmp_path: Path) -> None:
    heard: list[Progress] = []
    with opened(tmp_path, "measure") as child:
        assert isinstance(child.run(run(), deadline_s=30), Measured)
        child.on_progress = heard.append
        patience, child.spec = child.spec, replace(child.spec, hang_s=0.05)
        found = child.judge(JUDGE, deadline_s=30)
        child.spec = patience
        assert found.losses is not None and found.losses.nll == (2.0, 2.5)
        assert child.record.loaded_model is not None and child.record.loaded_model.quality == found
        assert [(progress.phase, progress.iteration) for progress in heard] == [("quality", 1), ("quality", 2)]
        assert isinstance(child.run(run(), deadline_s=30), Measured)


@pytest.mark.parametrize(
    ("behaviour", "deadline_s", "said"),
    [
        ("crash_in_judge", 30, "SIGSEGV"),
        ("hang_in_judge", 0.5, "measuring quality"),
        ("gibberish_in_judge", 30, "the child broke the protocol"),
    ],
)
def test_a_process_that_ends_while_it_judges_leaves_a_sentence(
    tmp_path: Path, behaviour: str, deadline_s: float, said: str
) -> None:
    with opened(tmp_path, behaviour) as child:
        assert isinstance(child.run(run(), deadline_s=30), Measured)
        found = child.judge(JUDGE, deadline_s=deadline_s)
        assert found.losses is None
        assert "the process ended while quality was measured" in found.notes[0] and said in found.notes[0]
        assert not child.is_alive
        assert child.record.cells_measured == 1


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(device(), Settings(data_dir=tmp_path, lock_dir=tmp_path), lambda _: None)
    yield made
    made.discard()


def lease(of: Cell, number: int, **changes: Any) -> Lease:
    values: dict[str, Any] = {
        "job_id": number, "sweep_id": "s", "fence": 1, "device_id": "box-cpu", "attempt": 1, "cell": of,
        "plan": MeasurementPlan.model_validate({"warmup": 3, "iterations": 5}), "load_group": of.load_group("s"), "ttl_s": 60.0,
        "quality": PLAN,
    }  # fmt: skip
    return Lease(**(values | changes))


def simulated(**changes: Any) -> Cell:
    return cell(engine="simulated", model="simulated/70", **changes)


@pytest.mark.parametrize("isolation", list(Isolation))
def test_quality_is_asked_for_once_a_load_group_and_every_cell_of_it_carries_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, isolation: Isolation
) -> None:
    asked: list[str] = []
    original = Child.judge

    def counted(self: Child, judge: Judge, deadline_s: float) -> Quality:
        asked.append(self.record.id)
        return original(self, judge, deadline_s)

    monkeypatch.setattr(Child, "judge", counted)
    cells = [simulated(batch_size=1), simulated(batch_size=2), simulated(batch_size=1, quantization="int8")]
    outcomes = [bench.measure(lease(each, number, isolation=isolation)) for number, each in enumerate(cells)]
    qualities = [
        outcome.child.loaded_model.quality
        for outcome in outcomes
        if isinstance(outcome, Measured) and outcome.child.loaded_model
    ]
    assert len(asked) == 2
    assert len(qualities) == 3
    assert all(
        quality is not None and quality.notes == ("this engine has no weights whose quality could be measured",)
        for quality in qualities
    )


def test_a_sweep_that_does_not_ask_for_quality_gets_none(bench: Bench) -> None:
    outcome = bench.measure(lease(simulated(), 1, quality=None))
    assert isinstance(outcome, Measured) and outcome.child.loaded_model is not None
    assert outcome.child.loaded_model.quality is None


def test_reading_the_unquantized_model_takes_no_time_from_loading(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[float] = []
    enough = Fault(fault=FaultKind.LOST, message="not loaded at all")

    def watched(self: Child, opening: Open, deadline_s: float) -> Fault:
        given.append(deadline_s)
        return enough

    monkeypatch.setattr(Child, "open", watched)
    for quality in (None, PLAN):
        assert bench.measure(lease(simulated(), 1, quality=quality)) == enough
    assert given == [LOAD_DEADLINE_S, LOAD_DEADLINE_S + READING_S]
    # Its own sentence comes before the deadline ends the child, whatever else there was to do.
    assert reference.LONGEST_S <= READING_S <= LOAD_DEADLINE_S / 2


def test_a_child_judges_between_cells_and_goes_on_measuring(tmp_path: Path) -> None:
    root = tmp_path / "models"
    root.mkdir()
    folder = root / "trained"
    folder.mkdir()
    for file in trained.folder("quick").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    plan = QualityPlan(tokens=512)
    of = cell(model="trained", weights="pretrained", quantization="int8", batch_size=1, generate_tokens=4)
    with child_process() as child:
        child.say(opening(of, tmp_path / "cache", architecture=None, model_root=str(root), quality=plan))
        loaded = child.answer(Opened)
        assert loaded.load_s < 60
        child.say(measure_this(of))
        first = child.answer(CellRecord)
        child.say(Judge(plan=plan, time_limit_s=120.0))
        quality = child.answer(Judged).quality
        assert quality.notes == ()
        assert quality.agreement is not None and quality.agreement.reference == "trained fp32"
        assert quality.agreement.agreeing / quality.agreement.positions > 0.95  # eight bits change next to nothing
        assert quality.tokens == 512
        child.say(measure_this(of))
        second = child.answer(CellRecord)
        assert {sample.phase for sample in first.samples} == {sample.phase for sample in second.samples}
