from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
from scipy import stats

from effillm_worker.measure.student import distribution, half_width, quantile


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 9, 29, 100, 9999])
@pytest.mark.parametrize("probability", [0.005, 0.025, 0.3, 0.5, 0.9, 0.975, 0.9995])
def test_quantile_agrees_with_scipy(degrees: int, probability: float) -> None:
    assert quantile(probability, degrees) == pytest.approx(stats.t.ppf(probability, degrees), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("t", [-40.0, -2.2, -0.1, 0.0, 0.4, 3.0, 100.0])
@pytest.mark.parametrize("degrees", [1, 5, 30, 1000])
def test_distribution_agrees_with_scipy(t: float, degrees: int) -> None:
    assert distribution(t, degrees) == pytest.approx(stats.t.cdf(t, degrees), rel=1e-9, abs=1e-14)


@pytest.mark.parametrize(("probability", "degrees"), [(0.0, 3), (1.0, 3), (1.5, 3), (0.9, 0)])
def test_quantile_refuses_what_has_no_answer(probability: float, degrees: int) -> None:
    with pytest.raises(ValueError, match="expected 0 < probability < 1"):
        quantile(probability, degrees)


def test_half_width_is_the_students_interval_of_the_mean() -> None:
    values = [10.0, 11.0, 9.5, 10.4, 10.1]
    low, high = stats.t.interval(0.95, 4, statistics.fmean(values), stats.sem(values))
    assert half_width(values) == pytest.approx((high - low) / 2, rel=1e-9)


def test_half_width_of_one_value_is_infinite() -> None:
    assert half_width([1.0]) == math.inf


def test_interval_covers_the_mean_of_normal_series_in_95_percent() -> None:
    generator = np.random.default_rng(7)
    series = generator.normal(100, 5, size=(4000, 10)).tolist()
    covered = sum(abs(statistics.fmean(values) - 100) <= half_width(values) for values in series)
    assert 0.93 <= covered / len(series) <= 0.97
