from __future__ import annotations

from typing import Any

import pytest

from effillm_server.analysis.cells import cells
from effillm_server.analysis.facts import Facts
from effillm_server.analysis.scaling import batch_exponent_by_sequence, fits, predict
from tests.support.sweeps import SIZES, Grid, Laws, Noise, invent

FACTS = Facts(parameters=SIZES)
EXACT = Noise(within=0.0)
LENGTHS = (128, 256, 512, 1024, 2048, 4096)
BATCHES = (1, 2, 4, 8, 16, 32)


def fitted(law: str, grid: Grid, laws: Laws = Laws(), noise: Noise = EXACT, seed: int = 0) -> list[dict[str, Any]]:
    return fits(cells(invent(grid, laws, noise, seed)), FACTS, [law])


@pytest.mark.parametrize(
    ("law", "name", "truth", "grid"),
    [
        ("throughput-vs-size", "delta", 0.5, Grid(models=tuple(SIZES))),
        ("throughput-vs-batch", "beta", 0.8, Grid(batch_size=BATCHES)),
        ("throughput-vs-sequence", "mu", 0.3, Grid(sequence_length=LENGTHS)),
        ("ttft-vs-batch", "phi", 0.4, Grid(batch_size=BATCHES)),
        ("ttft-vs-sequence", "omega", 0.8, Grid(sequence_length=LENGTHS)),
        ("ttft-vs-sequence", "kappa", 0.005, Grid(sequence_length=LENGTHS)),
        ("ttft-vs-size", "alpha", 0.005, Grid(models=tuple(SIZES))),
        ("ttft-vs-size", "beta", 0.2, Grid(models=tuple(SIZES))),
        ("memory-vs-size", "overhead", 0.4, Grid(models=tuple(SIZES))),
        ("memory-vs-size", "c", 4 + 2e5 * 128 / 1e9, Grid(models=tuple(SIZES))),
        ("memory-vs-size", "c", 1 + 2e5 * 128 / 1e9, Grid(models=tuple(SIZES), quantization=("int8",))),
    ],
)
def test_every_law_recovers_the_parameters_its_data_were_made_with(
    law: str, name: str, truth: float, grid: Grid
) -> None:
    (fit,) = fitted(law, grid)
    assert fit["parameters"][name]["value"] == pytest.approx(truth, rel=2e-3)
    assert fit["r2"] > 0.9999 and fit["rmse_relative"] < 1e-3
    assert fit["weak"] is False


def test_a_fit_states_its_slice_its_range_and_the_jobs_it_rests_on() -> None:
    (fit,) = fitted("throughput-vs-batch", Grid(batch_size=BATCHES))
    assert fit["slice"]["sequence_length"] == 128 and "batch_size" not in fit["slice"]
    assert fit["range"] == [1.0, 32.0]
    assert fit["n"] == 6 and len(fit["jobs"]) == 6


def test_no_fit_below_four_points_and_a_weak_one_below_six() -> None:
    assert fitted("throughput-vs-batch", Grid(batch_size=BATCHES[:3])) == []
    (fit,) = fitted("throughput-vs-batch", Grid(batch_size=BATCHES[:4]))
    assert fit["weak"] is True and "weak: 4 points" in fit["remarks"][0]


def test_slices_are_never_mixed_and_every_other_axis_makes_its_own() -> None:
    found = fitted(
        "throughput-vs-batch", Grid(hardware=("cpu", "t4"), quantization=("fp32", "int8"), batch_size=BATCHES)
    )
    assert len(found) == 4
    assert all(fit["parameters"]["beta"]["value"] == pytest.approx(0.8) for fit in found)


def test_models_with_real_and_synthetic_weights_share_one_fit_over_size() -> None:
    rows = invent(Grid(models=tuple(SIZES)), noise=EXACT)
    for row in rows[::2]:
        row["weights"] = "pretrained"
    (fit,) = fits(cells(rows), FACTS, ["throughput-vs-size"])
    assert fit["n"] == len(SIZES)


def test_repeats_of_a_cell_are_one_point() -> None:
    (fit,) = fitted("throughput-vs-batch", Grid(batch_size=BATCHES, repeats=3), noise=Noise(between=0.02))
    assert fit["n"] == 6 and len(fit["jobs"]) == 18


def test_a_model_of_unknown_size_is_left_out_of_size_laws() -> None:
    rows = invent(Grid(models=tuple(SIZES)), noise=EXACT)
    known = Facts(parameters={name: size for name, size in SIZES.items() if name != "facebook/opt-125m"})
    (fit,) = fits(cells(rows), known, ["throughput-vs-size"])
    assert fit["n"] == len(SIZES) - 1


def test_a_bend_that_the_law_cannot_follow_is_reported() -> None:
    rows = invent(Grid(batch_size=BATCHES), noise=Noise(within=0.001))
    for row in rows:
        if row["batch_size"] > 8:
            row["throughput_tok_s_mean"] = next(r["throughput_tok_s_mean"] for r in rows if r["batch_size"] == 8) * 1.02
    (fit,) = fits(cells(rows), FACTS, ["throughput-vs-batch"])
    assert fit["residual_check"]["curved"] is True


def test_data_that_follow_the_law_show_a_bend_in_about_one_of_twenty_fits() -> None:
    found = [fitted("throughput-vs-batch", Grid(batch_size=BATCHES), noise=Noise(0.03), seed=s)[0] for s in range(200)]
    assert 0.01 <= sum(fit["residual_check"]["curved"] for fit in found) / 200 <= 0.10


def test_hold_out_errors_are_those_of_fits_that_did_not_see_the_point() -> None:
    rows = invent(Grid(batch_size=BATCHES), noise=Noise(0.05), seed=2)
    (fit,) = fits(cells(rows), FACTS, ["throughput-vs-batch"])
    (without,) = fits(cells(rows[:-1]), FACTS, ["throughput-vs-batch"])
    missed = predict(without, 32.0)["y"] / rows[-1]["throughput_tok_s_mean"] - 1
    assert fit["holdout"]["largest_left_out"] == pytest.approx(missed, rel=1e-6)
    assert fit["holdout"]["max_error"] >= fit["holdout"]["median_error"] > 0


def test_a_prediction_outside_the_measured_range_carries_a_warning() -> None:
    (fit,) = fitted("ttft-vs-sequence", Grid(sequence_length=LENGTHS))
    inside, outside = predict(fit, 1000), predict(fit, 16384)
    assert inside["warning"] is None
    assert "outside the measured range 128 to 4096 tokens" in outside["warning"]
    assert inside["y"] == pytest.approx(0.005 + 0.2 * 0.125239296 * (1000 / 128) ** 0.8, rel=1e-3)


def test_the_batch_exponent_is_told_as_a_function_of_sequence_length() -> None:
    grid = Grid(batch_size=BATCHES[:4], sequence_length=(128, 256, 512, 1024))
    (fit,) = batch_exponent_by_sequence(cells(invent(grid, Laws(beta_slope=-0.05), EXACT)), FACTS)
    assert fit["parameters"]["beta_128"]["value"] == pytest.approx(0.8)
    assert fit["parameters"]["slope_per_doubling"]["value"] == pytest.approx(-0.05)
    assert len(fit["alpha"]) == 4


def test_zero_variance_between_points_is_fitted_not_refused() -> None:
    rows = invent(Grid(batch_size=BATCHES), noise=EXACT)
    for row in rows:
        row["throughput_tok_s_mean"] = 100.0
    (fit,) = fits(cells(rows), FACTS, ["throughput-vs-batch"])
    assert fit["parameters"]["beta"]["value"] == pytest.approx(0, abs=1e-9)
