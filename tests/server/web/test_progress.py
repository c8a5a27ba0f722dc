"""How far a sweep is and how long it takes, from counters."""

from __future__ import annotations

from typing import Any

import pytest

from effillm_server.api import examples
from effillm_server.api.views import SweepSummary
from effillm_server.web.progress import parts, progress


def sweep(device_seconds: float = 0.0, reasons: dict[str, int] | None = None, **counts: int) -> SweepSummary:
    states = dict.fromkeys(("pending", "leased", "measured", "infeasible", "failed", "cancelled"), 0) | counts
    changes: dict[str, Any] = {
        "counts": states, "total": sum(states.values()), "device_seconds": device_seconds, "reasons": reasons or {},
    }  # fmt: skip
    return SweepSummary.model_validate(examples.SWEEP_SUMMARY | changes)


def test_the_rest_takes_its_share_of_the_devices_at_work() -> None:
    # 9 jobs and 2 halves took 100 s of device time: 10 s each; 2 devices have 20 to go and 2 halves.
    found = progress(sweep(device_seconds=100.0, measured=9, leased=2, pending=20))
    assert (found.done, found.total) == (9, 31)
    assert found.per_minute == pytest.approx(12.0)
    assert found.left_s == pytest.approx(105.0)


def test_cells_that_took_no_time_do_not_make_it_look_faster() -> None:
    plain = progress(sweep(device_seconds=100.0, measured=9, leased=2, pending=20))
    known = {"context_window": 40, "implied": 10}
    assert progress(sweep(100.0, known, measured=9, leased=2, pending=20, infeasible=50)).left_s == plain.left_s
    ran = progress(sweep(100.0, {"out_of_device_memory": 9}, measured=9, leased=2, pending=20, infeasible=9))
    assert ran.left_s is not None and plain.left_s is not None
    assert ran.left_s < plain.left_s


@pytest.mark.parametrize(
    "counts", [{"pending": 5}, {"measured": 5}, {"leased": 1, "pending": 4}, {"measured": 1, "pending": 4}, {}]
)
def test_without_a_device_at_work_or_anything_done_no_time_is_told(counts: dict[str, int]) -> None:
    found = progress(sweep(device_seconds=1.0, **counts))
    assert (found.per_minute, found.left_s) == (None, None)


def test_the_bar_has_every_state_once_and_in_proportion() -> None:
    found = parts(sweep(measured=50, infeasible=25, leased=5, pending=20))
    assert found == [("measured", 0.0, 50.0), ("infeasible", 50.0, 25.0), ("leased", 75.0, 5.0)]
    assert parts(sweep()) == []
