from __future__ import annotations

import numpy as np
import pytest
import statsmodels.api as sm
from scipy import optimize

from effillm_server.analysis.forms import ABSOLUTE, Form, OffsetPower, Power, Straight
from tests.support.fit_coverage import FITS, fit_coverage

X = np.array([128.0, 256, 512, 1024, 2048, 4096])
SIZES = np.array([70e6, 125e6, 160e6, 331e6, 410e6, 1e9, 1.4e9]) / 1e9
ONES = np.ones


@pytest.mark.parametrize("name", FITS)
def test_intervals_hold_the_true_parameters_at_the_stated_rate(name: str) -> None:
    assert FITS[name].points >= 6
    # 95 % +- 2, and what a count of 1,000 sweeps scatters by: two standard errors.
    slack = 0.02 + 2 * (0.95 * 0.05 / 1000) ** 0.5
    for parameter, share in fit_coverage(name, 1000).items():
        assert abs(share - 0.95) <= slack, parameter


def test_a_power_is_the_weighted_regression_of_logarithms() -> None:
    rng = np.random.default_rng(3)
    y, sigma = 40 * X**-0.3 * np.exp(0.05 * rng.standard_normal(X.size)), np.linspace(0.01, 0.1, X.size)
    fitted = Power(("a", "p")).fit(X, y, sigma)
    other = sm.WLS(np.log(y), sm.add_constant(np.log(X)), weights=1 / sigma**2).fit()
    low, high = other.conf_int()[1]
    exponent = fitted.parameters[1]
    assert (exponent.value, exponent.low, exponent.high) == pytest.approx((other.params[1], low, high))
    assert np.log(fitted.parameters[0].value) == pytest.approx(other.params[0])
    assert np.log([fitted.parameters[0].low, fitted.parameters[0].high]) == pytest.approx(other.conf_int()[0])
    assert fitted.r2 == pytest.approx(other.rsquared)


def test_a_straight_line_with_absolute_noise_is_weighted_least_squares_also_for_huge_x() -> None:
    rng = np.random.default_rng(4)
    x = SIZES * 1e9
    y = 0.5 + 4e-9 * x + 0.02 * rng.standard_normal(x.size)
    fitted = Straight(("a", "b"), ABSOLUTE).fit(x, y, ONES(x.size))
    other = sm.OLS(y, sm.add_constant(x / 1e9)).fit()
    assert [p.value for p in fitted.parameters] == pytest.approx([other.params[0], other.params[1] / 1e9])
    assert fitted.parameters[1].low == pytest.approx(other.conf_int()[1][0] / 1e9)


def test_an_offset_power_finds_the_minimum_that_a_general_solver_finds() -> None:
    rng = np.random.default_rng(5)
    y = (0.03 + 2e-4 * X**0.7) * np.exp(0.01 * rng.standard_normal(X.size))
    fitted = OffsetPower(("k", "v", "w")).fit(X, y, np.full(X.size, 0.01))
    start = [p.value for p in fitted.parameters]
    scale = 0.01 * fitted.predict(X)
    other = optimize.least_squares(
        lambda p: (y - p[0] - p[1] * X ** p[2]) / scale, start, x_scale=np.abs(start), xtol=1e-14, ftol=1e-14
    )
    assert other.cost == pytest.approx(float(fitted.residuals @ fitted.residuals) / 2, rel=1e-5)


@pytest.mark.parametrize("w", [0.3, 0.7, 1.0, 1.6])
def test_an_exact_offset_power_is_recovered_with_tight_intervals(w: float) -> None:
    fitted = OffsetPower(("k", "v", "w")).fit(X, 0.02 + 1e-3 * X**w, np.full(X.size, 0.01))
    assert [p.value for p in fitted.parameters] == pytest.approx([0.02, 1e-3, w], rel=1e-3, abs=1e-5)
    exponent = fitted.parameters[2]
    assert exponent.low is not None and exponent.high is not None and exponent.high - exponent.low < 1e-2
    assert fitted.r2 == pytest.approx(1.0)


def test_data_that_do_not_bound_a_parameter_leave_its_interval_open() -> None:
    rng = np.random.default_rng(6)
    y = 0.5 * np.exp(0.1 * rng.standard_normal(X.size))
    bounds = [(p.low, p.high) for p in OffsetPower(("k", "v", "w")).fit(X, y, np.full(X.size, 0.1)).parameters]
    assert any(low is None or high is None for low, high in bounds)


@pytest.mark.parametrize(
    "form", [Power(("a", "p")), Straight(("a", "b")), OffsetPower(("k", "v", "w"))], ids=lambda f: type(f).__name__
)
def test_constant_values_are_fitted_without_trouble(form: Form) -> None:
    fitted = form.fit(X, np.full(X.size, 3.0), np.full(X.size, 0.01))
    assert fitted.predict(X) == pytest.approx(np.full(X.size, 3.0))
