from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from benchmarks.fidelity import Comparison, Ratio, main, pseudo_median
from tests.support.pairs import Decided, decide, growing, simulate


def compared(*ratios: float, wall: float = 1.0) -> Comparison:
    comparison = Comparison(1, "fp32")
    for ratio in ratios:
        comparison.add({"throughput_tok_s": 100 * ratio, "wall_s": wall}, {"throughput_tok_s": 100, "wall_s": 1.0})
        comparison.add_first_tokens(ratio, 1.0, 1.02)
    return comparison


def test_ratio_is_the_geometric_mean_with_its_students_interval() -> None:
    logarithms = [math.log(value) for value in (1.01, 0.99, 1.02, 1.0)]
    ratio = Ratio.of(logarithms)
    low, high = stats.t.interval(0.95, 3, sum(logarithms) / 4, stats.sem(logarithms))
    assert ratio.mean == pytest.approx((1.01 * 0.99 * 1.02 * 1.0) ** 0.25)
    assert (ratio.low, ratio.high) == pytest.approx((math.exp(low), math.exp(high)))


def test_pseudo_median_agrees_with_its_definition_and_with_wilcoxons_test() -> None:
    values = np.random.default_rng(3).standard_t(3, 24) * 0.01 + 0.005
    ratio = pseudo_median(list(values))
    pairs = [(a + b) / 2 for i, a in enumerate(values) for b in values[i:]]
    assert ratio.mean == pytest.approx(math.exp(np.median(pairs)))
    inside, outside = math.log(ratio.low) + 1e-6, math.log(ratio.low) - 1e-6
    p = [stats.wilcoxon(values - shift, method="approx", correction=False).pvalue for shift in (inside, outside)]
    assert p[0] > 0.05 - 0.01 and p[1] < 0.05 + 0.01 and p[0] > p[1]


def test_pseudo_median_covers_the_truth_as_often_as_it_says_where_students_mean_is_torn() -> None:
    random = np.random.default_rng(11)
    series = random.standard_t(2, (600, 60)) * 0.03
    found = [pseudo_median(list(values)) for values in series]
    covered = sum(ratio.low <= 1.0 <= ratio.high for ratio in found) / len(found)
    assert 0.93 <= covered <= 0.97
    assert np.median([ratio.half_width for ratio in found]) < np.median(
        [Ratio.of(values).half_width for values in series]
    )


def test_tight_pairs_around_one_are_inside() -> None:
    assert compared(*4 * (1.001, 0.999, 1.002, 1.0, 0.998, 1.001)).verdict == "inside"


def test_tight_pairs_away_from_one_are_outside() -> None:
    assert compared(*4 * (0.9, 0.901, 0.899, 0.9, 0.901, 0.899)).verdict == "outside"


def test_probe_overhead_of_a_percent_is_outside() -> None:
    assert compared(*4 * (1.001, 0.999, 1.002, 1.0, 0.998, 1.001), wall=1.011).verdict == "outside"


def test_wide_pairs_are_undecided() -> None:
    assert compared(*4 * (1.2, 0.8, 1.1, 0.9, 1.0, 1.3)).verdict == "undecided"


def test_few_pairs_are_undecided_however_tight() -> None:
    assert compared(1.0, 1.0001, 0.9999).verdict == "undecided"


def test_unknown_model_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--model", "nobody/nothing"])
    assert "invalid choice" in capsys.readouterr().err


def test_the_simulation_follows_the_benchmarks_own_figure_pair_by_pair() -> None:
    logarithms = np.random.default_rng(5).standard_t(3, 60) * 0.02
    found = list(growing(logarithms))
    assert [count for _, count in found] == list(range(20, 61))
    for ratio, count in found[::8]:
        own = pseudo_median(list(logarithms[:count]))
        assert (ratio.mean, ratio.low, ratio.high) == pytest.approx((own.mean, own.low, own.high), abs=1e-12)


def test_the_simulation_decides_where_the_benchmark_does() -> None:
    logarithms = np.random.default_rng(7).standard_normal(500) * 0.02
    decided = Decided(truth=1.0)
    decide(decided, logarithms)
    (count,) = decided.pairs
    comparison = Comparison(1, "fp32")
    for number, value in enumerate(logarithms, start=1):
        comparison.logarithms["throughput_tok_s"].append(float(value))
        assert comparison.is_decided("throughput_tok_s") == (number == count)
        if number == count:
            break
    own = pseudo_median(comparison.logarithms["throughput_tok_s"])
    assert decided.ratios[0].low == pytest.approx(own.low)


def test_the_rule_costs_no_coverage_away_from_the_bounds_and_all_of_it_at_one() -> None:
    """As docs/measured.md says: a ratio of 1 is held by 95 % of the intervals, one at a bound by none that was decided."""
    equal = simulate("normal, 3 %", 1.0, 300).shares()
    assert equal["decided"] == 1.0
    assert equal["hold the truth"] is not None and 0.92 <= equal["hold the truth"] <= 0.98
    at_bound = simulate("normal, 3 %", 0.98, 40).shares()
    assert at_bound["hold the truth"] in (0.0, None)
