"""How a child's end is read: every way it can end, and what that means for the cell."""

from __future__ import annotations

from typing import Any

import pytest

from effillm_server.contract.outcome import Cancelled, ChildRecord, Fault, FaultKind, Infeasible, InfeasibleReason
from effillm_worker.ending import PACE_FACTOR, PACE_S, Doing, Ending, Pace, classify

CHILD = ChildRecord(id="c", load_group="g", pid=1, started_at="2025-01-01T00:00:00Z")
DOING = Doing("batch 4 of m", 90.0, 10**9, warm=True, child=CHILD)

OUT = InfeasibleReason.OUT_OF_HOST_MEMORY


@pytest.mark.parametrize(
    ("ending", "expected"),
    [
        ({"why": "deadline", "moved": True, "progressed": True}, InfeasibleReason.TIME_LIMIT),
        ({"why": "deadline", "moved": True}, FaultKind.HUNG),
        ({"why": "deadline"}, FaultKind.HUNG),
        ({"why": "hang", "moved": True}, FaultKind.HUNG),
        ({"why": "exited", "signal": "SIGKILL", "oom_kills": 1}, OUT),
        ({"why": "exited", "code": 1, "oom_kills": 1}, OUT),
        ({"why": "exited", "signal": "SIGKILL", "machine_oom_kills": 1}, OUT),
        ({"why": "exited", "signal": "SIGABRT", "max_rss_bytes": 990_000_000}, OUT),
        ({"why": "exited", "signal": "SIGSEGV", "max_rss_bytes": 500_000_000}, FaultKind.CRASHED),
        ({"why": "exited", "signal": "SIGSEGV", "machine_oom_kills": 1}, FaultKind.CRASHED),
        ({"why": "exited", "signal": "SIGKILL"}, FaultKind.CRASHED),
        ({"why": "exited", "code": 1}, FaultKind.CRASHED),
        ({"why": "exited", "code": 0}, FaultKind.CRASHED),
        ({"why": "supervisor_lost"}, FaultKind.CRASHED),
        ({"why": "signalled", "signal": "SIGTERM"}, FaultKind.CRASHED),
    ],
)
def test_every_end_has_one_meaning(ending: dict[str, Any], expected: InfeasibleReason | FaultKind) -> None:
    outcome = classify(Ending(**ending), DOING)
    assert outcome.child == CHILD
    if isinstance(outcome, Infeasible):
        assert outcome.reason is expected and outcome.warm
    else:
        assert isinstance(outcome, Fault) and outcome.fault is expected
    assert outcome.message.startswith("batch 4 of m")


def test_a_cancelled_child_is_cancelled_whatever_else_happened() -> None:
    assert isinstance(classify(Ending("cancelled", signal="SIGKILL", oom_kills=1), DOING), Cancelled)


def test_reported_iterations_count_as_progress_only_without_a_counter() -> None:
    assert Ending("deadline").with_progress(seen=True).progressed
    assert not Ending("deadline", moved=True).with_progress(seen=True).progressed
    assert not Ending("deadline").with_progress(seen=False).progressed


def test_a_part_that_is_long_overdue_is_no_progress_any_more() -> None:
    pace = Pace(1000.0)
    assert not pace.continues(1000.0)  # nothing was ever done
    for now in (1010.0, 1110.0, 1120.0):
        pace.note(now)
    assert pace.continues(1120.0 + PACE_FACTOR * 100)
    assert not pace.continues(1120.0 + PACE_FACTOR * 100 + 1)


def test_quick_parts_do_not_make_a_pause_a_hang() -> None:
    pace = Pace(0.0)
    pace.note(0.1)
    assert pace.continues(0.1 + PACE_S)
    assert not pace.continues(0.2 + PACE_S)


def test_messages_say_what_ended_it() -> None:
    def said(**fields: Any) -> str:
        outcome = classify(Ending(**fields), DOING)
        assert not isinstance(outcome, Cancelled)
        return outcome.message

    assert "at its memory limit of 1 GB" in said(why="exited", oom_kills=1)
    assert "the machine ran out of memory" in said(why="exited", signal="SIGKILL", machine_oom_kills=2)
    assert "after its limit of 1 min 30 s" in said(why="deadline", progressed=True)
    assert "ended by SIGBUS" in said(why="exited", signal="SIGBUS")
    assert "exited 0 without an answer" in said(why="exited", code=0)
