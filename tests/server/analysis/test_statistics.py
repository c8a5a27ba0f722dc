from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.weightstats import DescrStatsW

from effillm_server.analysis import statistics
from tests.support.coverage import fixed_coverage, stopped_coverage

RNG = np.random.default_rng(7)
SAMPLES = [
    RNG.normal(10, 2, 5),
    RNG.lognormal(0, 1, 12),
    RNG.exponential(3, 31),
    np.array([1.0, 2.0]),
    RNG.normal(0, 1, 500),
]


@pytest.mark.parametrize("sample", SAMPLES, ids=len)
def test_the_mean_and_its_interval_agree_with_statsmodels(sample: np.ndarray) -> None:
    got = statistics.summarize(sample)
    assert got is not None and got.mean_interval is not None
    other = DescrStatsW(sample)
    assert got.mean == pytest.approx(other.mean)
    assert got.std == pytest.approx(np.sqrt(other.var_ddof(1)))
    assert (got.mean_interval.low, got.mean_interval.high) == pytest.approx(other.tconfint_mean(0.05))


@pytest.mark.parametrize("sample", SAMPLES, ids=len)
def test_the_interval_of_the_median_agrees_with_scipys_quantile_test(sample: np.ndarray) -> None:
    got = statistics.median_interval(sample)
    if sample.size < 6:
        assert got is None
        return
    low = stats.quantile_test(sample, q=sample.mean(), p=0.5).confidence_interval(0.95)
    assert got is not None
    assert (got.low, got.high) == (low.low, low.high)


@pytest.mark.parametrize("n", range(1, 60))
def test_the_rank_of_the_median_interval_is_the_tightest_that_covers_95_percent(n: int) -> None:
    def coverage(rank: int) -> float:
        return 1 - 2 * float(stats.binom.cdf(rank - 1, n, 0.5))

    rank = statistics.median_rank(n)
    if rank is None:
        assert coverage(1) < 0.95
    else:
        assert coverage(rank) >= 0.95 > coverage(rank + 1)


def test_percentiles_interpolate_between_order_statistics() -> None:
    values = list(range(1, 102))
    assert statistics.percentiles(values) == {50: 51.0, 90: 91.0, 95: 96.0, 99: 100.0}
    assert statistics.percentiles([]) == {50: None, 90: None, 95: None, 99: None}
    assert statistics.percentiles([3.0])[99] == 3.0


def test_modified_z_scores_agree_with_the_published_formula() -> None:
    values = np.array([1.0, 2.0, 3.0, 4.0, 100.0])
    mad = stats.median_abs_deviation(values)
    assert statistics.modified_z_scores(values) == pytest.approx(0.6745 * (values - 3) / mad)
    assert statistics.outliers(values) == [False, False, False, False, True]


def test_a_lone_deviation_among_equal_values_is_an_outlier_and_equal_values_have_none() -> None:
    assert statistics.outliers([5.0] * 9 + [6.0]) == [False] * 9 + [True]
    assert statistics.outliers([5.0] * 9) == [False] * 9


def test_two_values_have_no_outlier() -> None:
    assert statistics.outliers([1.0, 100.0]) == [False, False]


def test_autocorrelation_agrees_with_statsmodels() -> None:
    from statsmodels.tsa.stattools import acf

    sample = RNG.normal(0, 1, 40).cumsum()
    assert statistics.lag1_autocorrelation(sample) == pytest.approx(acf(sample, nlags=1, fft=False)[1])
    assert statistics.lag1_autocorrelation([2.0, 2.0, 2.0]) is None


def test_what_too_few_values_cannot_give_is_none() -> None:
    assert statistics.summarize([]) is None
    one = statistics.summarize([4.0])
    assert one == statistics.Summary(1, 4.0, 4.0, None, None, None)
    assert statistics.relative_half_width([4.0]) is None


def test_zero_variance_gives_an_interval_of_no_width() -> None:
    assert statistics.mean_interval([2.0, 2.0, 2.0]) == statistics.Interval(2.0, 2.0)
    assert statistics.relative_half_width([2.0, 2.0, 2.0]) == 0.0


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_infinity_are_refused_with_their_number(bad: float) -> None:
    with pytest.raises(ValueError, match="found 1 NaN or infinite among 3"):
        statistics.summarize([1.0, bad, 2.0])


@pytest.mark.parametrize("n", [5, 10, 30])
def test_intervals_cover_95_percent_where_their_assumptions_hold(n: int) -> None:
    covered = fixed_coverage("normal", n, 3000, exclude=False)
    assert 0.93 <= covered["mean"] <= 0.97
    if n >= 6:
        assert 0.94 <= covered["median"] <= 0.99


def test_the_interval_of_the_median_holds_for_skewed_series_too() -> None:
    assert 0.94 <= fixed_coverage("skewed", 10, 3000, exclude=False)["median"] <= 0.99


def test_the_stated_limits_of_the_intervals_are_the_measured_ones() -> None:
    """docs/statistics.md states these: leaving out marked values narrows, neighbours that hang together narrow more."""
    assert 0.90 <= fixed_coverage("normal", 10, 3000, exclude=True)["mean"] <= 0.94
    assert 0.87 <= fixed_coverage("skewed", 10, 3000, exclude=False)["mean"] <= 0.94
    assert 0.68 <= fixed_coverage("autocorrelated", 10, 3000, exclude=True)["mean"] <= 0.80
    assert fixed_coverage("outliers", 30, 3000, exclude=True)["mean"] >= 0.92


def test_the_stopping_rule_costs_what_the_documentation_says() -> None:
    got = stopped_coverage("normal", 1200)
    assert 0.87 <= got["mean"] <= 0.94
    # What captions and report say: two and a half standard errors of 1,200 cells.
    assert got["mean"] == pytest.approx(statistics.STOPPED_COVERAGE, abs=0.02)
    assert abs(got["bias"]) < 0.003
    assert 20 <= got["iterations"] <= 27
