"""The state machine of a job, by table and by law."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from effillm_server.contract.outcome import Cancelled, FaultKind, Infeasible, InfeasibleReason, Outcome
from effillm_server.lifecycle import RETRYABLE, TRANSITIONS, History, JobState, after, after_fault
from tests.support.ledger import crashed, invalid, measured, out_of_memory

OUTCOMES: list[Outcome] = [
    measured(),
    invalid(),
    out_of_memory(),
    out_of_memory(warm=True),
    Infeasible(reason=InfeasibleReason.TIME_LIMIT, message="1800 s were not enough", warm=True),
    crashed(),
    Cancelled(),
]


@pytest.mark.parametrize(("outcome", "history", "state"), [
    (measured(), History(), JobState.MEASURED),
    (invalid(), History(), JobState.PENDING),
    (invalid(), History(remeasures=2), JobState.MEASURED),
    (out_of_memory(), History(), JobState.INFEASIBLE),
    (out_of_memory(warm=True), History(), JobState.PENDING),
    (crashed(), History(), JobState.PENDING),
    (crashed(), History(faults=2), JobState.FAILED),
    (Cancelled(), History(), JobState.CANCELLED),
])  # fmt: skip
def test_each_outcome_leads_to_its_state(outcome: Outcome, history: History, state: JobState) -> None:
    assert after(outcome, history).state is state


@pytest.mark.parametrize(("outcome", "faults"), list(product(OUTCOMES, range(4))))
def test_whatever_happens_follows_a_transition_that_exists(outcome: Outcome, faults: int) -> None:
    assert after(outcome, History(faults=faults)).state in TRANSITIONS[JobState.LEASED]


def test_an_invalid_measurement_counts_until_a_better_one_comes() -> None:
    step = after(invalid(), History())
    assert step.keeps_result
    assert step.counts_as_remeasure
    assert not step.counts_as_fault


def test_out_of_memory_in_a_warm_child_is_confirmed_in_a_fresh_one_and_is_no_fault() -> None:
    step = after(out_of_memory(warm=True), History())
    assert step.fresh_child
    assert not step.counts_as_fault


def test_a_time_limit_needs_no_confirmation() -> None:
    outcome = Infeasible(reason=InfeasibleReason.TIME_LIMIT, message="too slow", warm=True)
    assert after(outcome, History()).state is JobState.INFEASIBLE


@given(faults=st.integers(0, 10), most=st.integers(1, 10), jitter=st.floats(0, 1))
def test_a_job_fails_exactly_with_its_last_allowed_fault(faults: int, most: int, jitter: float) -> None:
    step = after_fault(FaultKind.LOST, "gone", History(faults=faults, max_attempts=most), jitter)
    assert (step.state is JobState.FAILED) == (faults + 1 >= most)


@pytest.mark.parametrize(("faults", "middle"), [(0, 2.0), (1, 4.0), (2, 8.0)])
def test_the_backoff_doubles_and_spreads_by_half(faults: int, middle: float) -> None:
    delays = [
        after_fault(FaultKind.HUNG, "", History(faults=faults, max_attempts=9), jitter).delay_s
        for jitter in (0, 0.5, 1)
    ]
    assert delays == [middle / 2, middle, middle * 1.5]


def test_a_user_can_retry_what_may_end_differently_but_not_an_answer() -> None:
    assert {JobState.MEASURED, JobState.FAILED, JobState.CANCELLED} == RETRYABLE
