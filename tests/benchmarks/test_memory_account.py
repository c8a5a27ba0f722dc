from __future__ import annotations

import pytest

from benchmarks.memory_account import Account

SOUND = {"weights_bytes": 400, "weights_predicted_bytes": 400, "kv_cache_bytes": 50, "kv_cache_predicted_bytes": 50}


def account(quantization: str = "fp32", **lines: int | None) -> Account:
    return Account(1, quantization, SOUND | lines, unexplained=0.0)


def test_counts_that_are_as_predicted_agree() -> None:
    assert account().agrees
    assert account(kv_cache_bytes=52).agrees


@pytest.mark.parametrize(
    "wrong", [{"weights_bytes": 440}, {"weights_bytes": 200}, {"kv_cache_bytes": 55}, {"kv_cache_bytes": None}]
)
def test_wrong_weights_or_cache_do_not_although_nothing_is_unexplained(wrong: dict[str, int | None]) -> None:
    """The remainder cannot see them: weights and cache cancel out of it."""
    assert account(**wrong).explained
    assert not account(**wrong).agrees


def test_quantized_weights_are_shown_beside_their_prediction_and_not_held_against_it() -> None:
    assert account("int8", weights_bytes=220, weights_predicted_bytes=100).agrees
    assert not account("int8", kv_cache_bytes=25).agrees
