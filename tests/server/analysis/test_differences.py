from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import CompareMeans, DescrStatsW

from effillm_server.analysis.cells import Cell, cells
from effillm_server.analysis.differences import MANN_WHITNEY, NOISE, WELCH, difference, hedges_g, holm
from effillm_server.analysis.facts import Facts
from tests.support.sweeps import Grid, invent

TEMPLATE = invent(Grid())[0]
FACTS = Facts(noise_floor=0.06)
METRIC = "throughput_tok_s"


def made_of(means: list[float]) -> Cell:
    """A cell whose processes have these throughputs."""
    (cell,) = cells(
        [
            TEMPLATE | {"throughput_tok_s_mean": mean, "throughput_tok_s_std": 0.0, "repeat": k}
            for k, mean in enumerate(means)
        ]
    )
    return cell


A = [100.0, 103.0, 98.0, 101.0, 99.5]
B = [106.0, 110.0, 104.0, 107.0]


def test_several_processes_are_compared_by_welchs_test_on_logarithms() -> None:
    found = difference(made_of(A), made_of(B), METRIC, 0.03, FACTS)
    assert found is not None and found.test == WELCH
    a, b = np.log(A), np.log(B)
    assert found.p_different == pytest.approx(stats.ttest_ind(b, a, equal_var=False).pvalue)
    low, high = CompareMeans(DescrStatsW(b), DescrStatsW(a)).tconfint_diff(usevar="unequal")
    assert (found.low, found.high) == pytest.approx((low, high))
    assert found.effect_size == pytest.approx(hedges_g(a, b))


def test_equivalence_is_the_two_one_sided_welch_test() -> None:
    near = [100.4, 101.5, 99.0, 101.0, 100.1]
    found = difference(made_of(A), made_of(near), METRIC, 0.05, FACTS)
    bound = math.log1p(0.05)
    other = CompareMeans(DescrStatsW(np.log(near)), DescrStatsW(np.log(A))).ttost_ind(-bound, bound, usevar="unequal")
    assert found is not None
    assert found.p_equivalent == pytest.approx(other[0])


def test_a_single_process_on_a_side_is_judged_by_the_noise_floor() -> None:
    found = difference(made_of([100.0]), made_of([110.0]), METRIC, 0.03, FACTS)
    assert found is not None and found.test == NOISE
    assert found.p_different == pytest.approx(2 * stats.norm.sf(math.log(1.1) / 0.06))
    assert (found.low, found.high) == pytest.approx(math.log(1.1) + np.array([-1, 1]) * 1.959964 * 0.06, rel=1e-5)


def test_a_noise_floor_that_was_measured_brings_its_own_degrees_of_freedom() -> None:
    found = difference(made_of([100.0]), made_of([110.0]), METRIC, 0.03, Facts(noise_floor=0.06, noise_floor_degrees=9))
    assert found is not None and found.degrees == 9
    assert found.p_different == pytest.approx(2 * stats.t.sf(math.log(1.1) / 0.06, 9))


def test_eight_skewed_processes_a_side_are_compared_by_ranks() -> None:
    rng = np.random.default_rng(1)
    a, b = 100 * np.exp(rng.exponential(0.2, 30) ** 2), 115 * np.exp(rng.exponential(0.2, 25) ** 2)
    found = difference(made_of(list(a)), made_of(list(b)), METRIC, 0.03, FACTS)
    assert found is not None and found.test == MANN_WHITNEY
    assert found.p_different == pytest.approx(stats.mannwhitneyu(b, a).pvalue)
    assert found.shift == pytest.approx(np.median(np.subtract.outer(np.log(b), np.log(a))))
    assert found.low < found.shift < found.high


def test_normal_processes_stay_with_welch_however_many() -> None:
    rng = np.random.default_rng(2)
    a, b = (100 * np.exp(0.02 * rng.standard_normal(20)) for _ in range(2))
    found = difference(made_of(list(a)), made_of(list(b)), METRIC, 0.03, FACTS)
    assert found is not None and found.test == WELCH


def test_holm_agrees_with_statsmodels() -> None:
    p = [0.01, 0.04, 0.03, 0.005, 0.9, 0.04]
    assert holm(p) == pytest.approx(multipletests(p, method="holm")[1])
    assert holm([]) == []


def test_hedges_g_is_cohens_d_with_its_small_sample_correction() -> None:
    a, b = np.array(A), np.array(B)
    pooled = math.sqrt((4 * a.var(ddof=1) + 3 * b.var(ddof=1)) / 7)
    assert hedges_g(a, b) == pytest.approx((b.mean() - a.mean()) / pooled * (1 - 3 / (4 * 7 - 1)))
    assert hedges_g(np.ones(3), np.ones(3)) is None


def test_values_without_any_spread_are_same_or_different_without_a_division() -> None:
    same = difference(made_of([100.0, 100.0]), made_of([100.0, 100.0]), METRIC, 0.03, FACTS)
    other = difference(made_of([100.0, 100.0]), made_of([120.0, 120.0]), METRIC, 0.03, FACTS)
    assert same is not None and other is not None
    assert (same.p_different, same.p_equivalent) == (1.0, 0.0)
    assert (other.p_different, other.p_equivalent) == (0.0, 1.0)


def test_a_side_without_the_metric_gives_nothing_to_compare() -> None:
    (empty,) = cells([TEMPLATE | {"throughput_tok_s_mean": None}])
    assert difference(made_of(A), empty, METRIC, 0.03, FACTS) is None


@pytest.mark.parametrize("processes", [3, 5, 10])
def test_the_minimum_detectable_difference_is_found_in_four_of_five_runs(processes: int) -> None:
    rng, sd, found = np.random.default_rng(processes), 0.04, 0
    exact = made_of(list(np.exp(sd * (z := np.linspace(-1, 1, processes)) / z.std(ddof=1))))
    told = difference(exact, exact, METRIC, 0.03, FACTS)
    assert told is not None
    effect, runs = told.minimum_detectable(0.05), 600
    for _ in range(runs):
        a, b = (np.exp(sd * rng.standard_normal(processes)) for _ in range(2))
        result = difference(made_of(list(a)), made_of(list((1 + effect) * b)), METRIC, 0.03, FACTS)
        found += result is not None and result.p_different < 0.05
    assert found / runs >= 0.80 - 2 * (0.8 * 0.2 / runs) ** 0.5
