"""What comes before a model is loaded and may take an hour: told step by step, so that a long one is not taken for a hang."""

from __future__ import annotations

from pathlib import Path

from effillm_server.contract.outcome import ChildRecord, Infeasible, InfeasibleReason
from effillm_worker.messages import Opened, Progress
from tests.support.child import child_process
from tests.support.child import opening as open_this
from tests.support.fake_engine import cell
from tests.support.isolation import opening, started


def test_steps_are_heard_while_a_model_is_opened_and_slow_ones_are_no_hang(tmp_path: Path) -> None:
    heard: list[Progress] = []
    with started(tmp_path, "prepare_in_open", hang_s=0.05) as child:
        child.on_progress = heard.append
        assert isinstance(child.open(opening(), deadline_s=60), ChildRecord)
    assert [(step.phase, step.iteration, step.at_most) for step in heard] == [
        ("quantizing", number, 3) for number in (1, 2, 3)
    ]


def test_a_preparation_that_is_still_going_on_at_the_deadline_is_an_answer(tmp_path: Path) -> None:
    with started(tmp_path, "prepare_for_ever_in_open") as child:
        outcome = child.open(opening(), deadline_s=5)
        assert isinstance(outcome, Infeasible)
        assert outcome.reason is InfeasibleReason.TIME_LIMIT
        assert outcome.message == "loading facebook/opt-125m was still making progress after its limit of 5 s"
        assert not child.is_alive


def test_a_child_that_trains_tells_each_step_and_counts_none_as_a_token(tmp_path: Path) -> None:
    with child_process() as child:
        child.say(open_this(cell(quantization="qat-b4-n3"), tmp_path))
        child.answer(Opened)
        steps = [report for report in child.heard if isinstance(report, Progress)]
        assert steps == [Progress(phase="quantizing", iteration=step, at_most=3) for step in (1, 2, 3)]
        assert child.tokens == 0
