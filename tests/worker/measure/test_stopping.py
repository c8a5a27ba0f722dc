from __future__ import annotations

import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from effillm_server.contract.outcome import StopReason
from effillm_worker.measure.stopping import Limits, Stopping, is_steady, outliers, outliers_of


@pytest.mark.parametrize(
    ("seconds", "steady"),
    [
        ([1.0, 1.0], False),
        ([1.0, 1.0, 1.0], True),
        ([1.0, 1.049, 0.951], True),
        ([1.0, 1.06, 1.0], False),
        ([9.0, 1.0, 1.0, 1.0], True),
        ([1.0, 1.0, 1.0, 9.0], False),
    ],
)
def test_warm_up_is_steady_when_the_last_three_agree_within_5_percent(seconds: list[float], steady: bool) -> None:
    assert is_steady(seconds) is steady


def test_outlier_is_marked_by_the_modified_z_score() -> None:
    values = [1.0, 1.01, 0.99, 1.02, 0.98, 1.5]
    middle = statistics.median(values)
    mad = statistics.median(abs(value - middle) for value in values)
    assert outliers(values) == [abs(0.6745 * (value - middle) / mad) > 3.5 for value in values]
    assert outliers(values) == [False] * 5 + [True]


def test_one_different_value_among_equal_ones_is_an_outlier() -> None:
    assert outliers([2.0] * 9 + [2.5]) == [False] * 9 + [True]


def test_equal_values_have_no_outliers() -> None:
    assert outliers([2.0] * 6) == [False] * 6


def test_two_values_have_no_outliers() -> None:
    assert outliers([1.0, 9.0]) == [False, False]


def test_batches_of_a_text_workload_are_compared_with_themselves_only() -> None:
    short, long = [1.0, 1.01, 0.99, 1.0], [5.0, 5.02, 4.99, 9.0]
    series = [value for pair in zip(short, long, strict=True) for value in pair]
    assert outliers_of(series, per_pass=2) == [False] * 7 + [True]


def test_fewer_than_three_passes_judge_nothing() -> None:
    assert outliers_of([1.0, 5.0, 1.0, 50.0], per_pass=2) == [False] * 4


def feed(stopping: Stopping, values: list[float]) -> tuple[int, StopReason | None]:
    for count, value in enumerate(values, start=1):
        reason = stopping.add(value)
        if reason is not None:
            return count, reason
    return len(values), None


def test_stops_at_the_minimum_when_the_interval_is_already_tight() -> None:
    assert feed(Stopping(Limits(5, 30, 0.02)), [1.0, 1.001] * 20) == (5, StopReason.CONVERGED)


def test_goes_on_until_the_interval_is_tight() -> None:
    count, reason = feed(Stopping(Limits(5, 1000, 0.02)), [1.0, 1.1, 0.9, 1.05, 0.95] * 200)
    assert reason is StopReason.CONVERGED
    speeds = [1 / value for value in ([1.0, 1.1, 0.9, 1.05, 0.95] * 200)[:count]]
    spread = statistics.stdev(speeds) / statistics.fmean(speeds)
    assert 1.9 * spread / count**0.5 < 0.02 < 2.1 * spread / (count - 2) ** 0.5


def test_stops_at_the_maximum_when_the_interval_stays_wide() -> None:
    assert feed(Stopping(Limits(5, 12, 0.001)), [1.0, 1.5] * 20) == (12, StopReason.MAX_ITERATIONS)


def test_every_outlier_is_given_one_more_iteration() -> None:
    values = [1.0, 1.001, 0.999, 1.002, 3.0, 1.0, 0.998, 1.001, 1.0, 1.0]
    stopping = Stopping(Limits(5, 30, 0.02))
    assert feed(stopping, values) == (6, StopReason.CONVERGED)
    assert stopping.marked == [False] * 4 + [True, False]


def test_replacements_stay_within_the_maximum_where_five_iterations_count_without_them() -> None:
    values = [1.0, 1.001, 0.999, 1.002, 3.0, 1.0]
    assert feed(Stopping(Limits(5, 6, 0.0001)), [*values, 1.0]) == (6, StopReason.MAX_ITERATIONS)


@pytest.mark.parametrize(
    ("most", "half_width", "late", "stopped"),
    [
        (5, 0.02, [3.0, 1.0, 1.0], (6, StopReason.CONVERGED)),
        (6, 0.02, [3.0, 3.1, 1.0, 1.0], (7, StopReason.CONVERGED)),
        (6, 0.00001, [3.0, 3.1, 1.0, 1.0], (7, StopReason.MAX_ITERATIONS)),
    ],
)
def test_a_maximum_whose_outliers_leave_fewer_than_five_to_count_is_passed(
    most: int, half_width: float, late: list[float], stopped: tuple[int, StopReason]
) -> None:
    stopping = Stopping(Limits(5, most, half_width))
    assert feed(stopping, [1.0, 1.001, 0.999, 1.002, *late]) == stopped
    assert stopping.counted == 5


def test_it_is_passed_by_two_at_most() -> None:
    stopping = Stopping(Limits(5, 5, 0.02))
    assert feed(stopping, [1.0, 1.001, 0.999, 1.002, 3.0, 5.0, 9.0, 1.0]) == (7, StopReason.MAX_ITERATIONS)
    assert stopping.counted == 4


def test_limits_are_rounded_up_to_whole_passes() -> None:
    assert Limits.in_passes(10, 30, 0.02, per_pass=7) == Limits(14, 35, 0.02, 7)
    assert Limits.in_passes(10, 30, 0.02, per_pass=50) == Limits(50, 50, 0.02, 50)
    assert Limits.in_passes(10, 30, 0.02, per_pass=1) == Limits(10, 30, 0.02, 1)


def test_a_text_workload_stops_at_the_end_of_a_pass_only() -> None:
    count, _ = feed(Stopping(Limits.in_passes(5, 30, 0.5, per_pass=4)), [1.0, 1.1, 1.2, 1.3] * 20)
    assert count == 8


@given(
    least=st.integers(5, 12),
    extra=st.integers(0, 20),
    per_pass=st.integers(1, 6),
    values=st.lists(st.floats(0.5, 2.0), min_size=200, max_size=200),
)
def test_always_stops_at_a_whole_pass_between_minimum_and_maximum_or_just_beyond_where_too_few_count(
    least: int, extra: int, per_pass: int, values: list[float]
) -> None:
    limits = Limits.in_passes(least, least + extra, 0.02, per_pass)
    count, reason = feed(Stopping(limits), values)
    assert reason is not None
    assert limits.least <= count <= limits.most + -(-2 // per_pass) * per_pass
    assert count % per_pass == 0
    if count > limits.most:
        assert outliers_of(values[: limits.most], per_pass).count(False) < 5


def test_stopping_rule_costs_little_coverage() -> None:
    """Stopping when the interval happens to be tight favours tight samples: coverage falls from 95 % to about 92 %."""
    generator = np.random.default_rng(11)
    covered = 0
    for speeds in generator.normal(100, 4, size=(1500, 30)):
        stopping = Stopping(Limits(10, 30, 0.02))
        feed(stopping, [1 / speed for speed in speeds])
        kept = [1 / value for value, marked in zip(stopping.e2e_s, stopping.marked, strict=True) if not marked]
        mean = statistics.fmean(kept)
        covered += abs(mean - 100) <= stopping.relative_half_width * mean
    assert 0.88 <= covered / 1500 <= 0.96
