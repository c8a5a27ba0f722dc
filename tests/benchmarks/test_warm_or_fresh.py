from __future__ import annotations

import pytest
from scipy import stats

from benchmarks.warm_or_fresh import METRICS, Series, _compare, overlap
from effillm_server.analysis.statistics import Interval
from effillm_server.contract.sweep import Isolation


def test_with_enough_rounds_the_interval_is_over_their_means() -> None:
    series = Series([[1.0, 3.0], [2.0, 4.0], [3.0, 5.0]])
    low, high = stats.t.interval(0.95, 2, 3.0, stats.sem([2.0, 3.0, 4.0]))
    assert series.mean == 3.0
    assert series.interval is not None
    assert (series.interval.low, series.interval.high) == pytest.approx((low, high))


def test_with_fewer_rounds_it_is_over_the_iterations() -> None:
    series = Series([[1.0, 3.0], [2.0, 4.0]])
    low, high = stats.t.interval(0.95, 3, 2.5, stats.sem([1.0, 3.0, 2.0, 4.0]))
    assert series.interval is not None
    assert (series.interval.low, series.interval.high) == pytest.approx((low, high))


@pytest.mark.parametrize(("one", "two", "agree"), [
    (Interval(1, 2), Interval(2, 3), True), (Interval(1, 4), Interval(2, 3), True), (Interval(1, 2), Interval(2.1, 3), False),
    (Interval(2.1, 3), Interval(1, 2), False), (None, Interval(1, 2), None),
])  # fmt: skip
def test_two_intervals_agree_when_they_have_a_value_in_common(
    one: Interval | None, two: Interval, agree: bool | None
) -> None:
    assert overlap(one, two) is agree


def test_a_cell_that_is_slower_when_fresh_is_told() -> None:
    warm = {metric: Series([[10.0, 10.1], [10.2, 10.1], [10.0, 10.2]]) for metric in METRICS}
    fresh = {metric: Series([[8.0, 8.1], [8.2, 8.1], [8.0, 8.2]]) for metric in METRICS}
    rows = _compare(("m", "fp32", 1), {Isolation.GROUP: warm, Isolation.CELL: fresh})
    assert [row["agree"] for row in rows] == [False, False]
    assert rows[0]["ratio"] == pytest.approx(10.1 / 8.1)
