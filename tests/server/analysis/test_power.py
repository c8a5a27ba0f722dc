from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from effillm_server.analysis.power import detectable_shift


@pytest.mark.parametrize("alpha", [0.05, 0.0125])
@pytest.mark.parametrize(("counts", "variances"), [((3, 3), (1.0, 1.0)), ((2, 5), (1.0, 3.0)), ((10, 4), (2.0, 1.0))])
def test_welchs_test_finds_the_shift_in_four_of_five_runs(
    counts: tuple[int, int], variances: tuple[float, float], alpha: float
) -> None:
    rng, runs = np.random.default_rng(7), 4000
    shift = detectable_shift(((variances[0] / counts[0], counts[0]), (variances[1] / counts[1], counts[1])), alpha)
    a, b = (np.sqrt(v) * rng.standard_normal((runs, n)) for v, n in zip(variances, counts, strict=True))
    found = stats.ttest_ind(a, b + shift, axis=1, equal_var=False).pvalue < alpha
    assert abs(found.mean() - 0.80) <= 0.005 + 3 * (0.8 * 0.2 / runs) ** 0.5


def test_with_many_values_it_is_the_closed_form_of_the_normal_distribution() -> None:
    shift = detectable_shift(((0.5, 5000), (0.5, 5000)), 0.05)
    assert shift == pytest.approx(stats.norm.ppf(0.975) + stats.norm.ppf(0.8), rel=1e-3)


def test_one_side_without_spread_leaves_the_other_sides_t_distribution() -> None:
    # Noncentral t by its definition: a second way to the same power.
    shift = detectable_shift(((1.0, 6), (0.0, 6)), 0.05)
    bar = stats.t.ppf(0.975, 5)
    assert stats.nct.sf(bar, 5, shift) + stats.nct.cdf(-bar, 5, shift) == pytest.approx(0.80, abs=2e-3)


def test_values_without_any_spread_need_no_shift_at_all() -> None:
    assert detectable_shift(((0.0, 3), (0.0, 3)), 0.05) == 0.0
