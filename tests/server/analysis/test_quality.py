from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from effillm_server.analysis.cells import cells
from effillm_server.analysis.quality import COLUMN_TYPES, columns
from effillm_server.analysis.rows import AXES, COLUMNS
from effillm_server.contract.quality import Agreement, Losses, Quality, TaskScore, TimeShares

DRAW = np.random.default_rng(7)
REFERENCE = tuple(DRAW.normal(2.0, 0.3, 32))
QUANTIZED = tuple(np.array(REFERENCE) + DRAW.normal(0.05, 0.02, 32))
TOKENS = (128,) * 32


def quality(nll: tuple[float, ...] = QUANTIZED, **changes: Any) -> dict[str, Any]:
    agreement = Agreement(
        reference="lab/m fp32", positions=4096, agreeing=3072, kl_positions=600, mean_kl=0.07, kl_se=0.004,
        losses=Losses(nll=REFERENCE, tokens=TOKENS),
    )  # fmt: skip
    values: dict[str, Any] = {"text": "shipped", "losses": Losses(nll=nll, tokens=TOKENS), "agreement": agreement}
    return Quality(**(values | changes)).model_dump(mode="json")


def test_rows_have_every_quality_column_and_they_are_typed_as_found() -> None:
    found = columns(
        quality(
            shares=TimeShares(prompt_tokens=8, decode_steps=8, prefill_dequantization=0.2, decode_dequantization=0.6)
        )
    )
    assert set(found) <= set(COLUMN_TYPES) <= set(COLUMNS)
    assert all(value is None or isinstance(value, COLUMN_TYPES[name]) for name, value in found.items())
    assert (found["dequantization_share_prefill"], found["dequantization_share_decode"]) == (0.2, 0.6)


def test_perplexity_and_its_interval_are_scipys_over_blocks() -> None:
    found = columns(quality())
    low, high = stats.t.interval(0.95, 31, loc=np.mean(QUANTIZED), scale=stats.sem(QUANTIZED))
    assert found["perplexity"] == pytest.approx(math.exp(np.mean(QUANTIZED)))
    assert found["perplexity_low"] == pytest.approx(math.exp(low))
    assert found["perplexity_high"] == pytest.approx(math.exp(high))
    assert found["quality_tokens"] == 4096


def test_quality_loss_is_the_rise_of_perplexity_and_its_interval_pairs_the_blocks() -> None:
    found = columns(quality())
    rises = np.array(QUANTIZED) - np.array(REFERENCE)
    low, high = stats.t.interval(0.95, 31, loc=rises.mean(), scale=stats.sem(rises))
    ratio = math.exp(np.mean(QUANTIZED)) / math.exp(np.mean(REFERENCE))
    assert found["quality_loss"] == pytest.approx(ratio - 1)
    assert found["quality_loss_ci95_low"] == pytest.approx(math.expm1(low))
    assert found["quality_loss_ci95_high"] == pytest.approx(math.expm1(high))
    # Pairing pays: the same text is hard for both.
    assert found["quality_loss_ci95_high"] - found["quality_loss"] < 0.3 * (
        found["perplexity_high"] / found["perplexity"] - 1
    )
    assert (found["token_agreement"], found["mean_kl"]) == (0.75, 0.07)


def test_the_unquantized_model_has_lost_nothing() -> None:
    found = columns(quality(REFERENCE))
    assert (found["quality_loss"], found["quality_loss_ci95_low"], found["quality_loss_ci95_high"]) == (0.0, 0.0, 0.0)


def test_without_a_reference_there_is_perplexity_but_no_loss_and_the_note_says_why() -> None:
    found = columns(quality(agreement=None, notes=("no agreement: a reason",)))
    assert found["perplexity"] is not None
    assert "quality_loss" not in found
    assert found["quality_note"] == "no agreement: a reason"


def test_every_task_is_told_with_its_standard_error_where_there_is_one() -> None:
    scores = (
        TaskScore(task="lambada_openai", metric="acc", value=0.38, stderr=0.0488, examples=100),
        TaskScore(task="riddles", metric="exact_match (strict)", value=0.75),
    )
    assert columns(quality(tasks=scores))["tasks"] == [
        "lambada_openai acc 0.38 ± 0.049",
        "riddles exact_match (strict) 0.75",
    ]
    assert columns(quality())["tasks"] is None


def test_a_row_of_before_quality_was_measured_has_no_value() -> None:
    assert columns(None) == {}


def test_a_loss_beyond_every_number_leaves_the_column_empty() -> None:
    found = columns(quality((800.0,) * 32))
    assert found["perplexity"] is None
    assert found["quality_loss"] is None


def test_repeats_keep_the_interval_over_the_text_because_their_weights_are_the_same() -> None:
    row = dict.fromkeys(AXES) | columns(quality()) | {"job": 1}
    (cell,) = cells([row, row | {"job": 2}])
    estimate = cell.estimate("quality_loss")
    assert estimate is not None
    assert (estimate.low, estimate.high) == (row["quality_loss_ci95_low"], row["quality_loss_ci95_high"])


def test_quality_kept_turns_the_loss_over_with_its_interval() -> None:
    (cell,) = cells([dict.fromkeys(AXES) | columns(quality()) | {"job": 1}])
    loss, kept = cell.estimate("quality_loss"), cell.estimate("quality_kept")
    assert loss is not None and kept is not None
    assert kept.value == pytest.approx(math.exp(np.mean(REFERENCE) - np.mean(QUANTIZED)))
    assert loss.low is not None and loss.high is not None
    assert (kept.low, kept.high) == (1 / (1 + loss.high), 1 / (1 + loss.low))
