"""The account's lines in order, what was found beside what was predicted."""

from __future__ import annotations

from effillm_server.contract.account import beside, predicted_weights


def test_weights_and_cache_stand_beside_their_predictions_in_the_order_they_are_read() -> None:
    account = {
        "unexplained_bytes": 1, "kv_cache_predicted_bytes": 7, "weights_predicted_bytes": 4, "weights_bytes": 5, "kv_cache_bytes": 6,
        "growth_bytes": 20, "other_bytes": 8,
    }  # fmt: skip
    assert beside(account) == [
        ("growth_bytes", 20, None), ("weights_bytes", 5, 4), ("kv_cache_bytes", 6, 7), ("other_bytes", 8, None),
        ("unexplained_bytes", 1, None),
    ]  # fmt: skip


def test_a_row_of_an_earlier_version_shows_the_prediction_of_a_cache_that_nobody_counted() -> None:
    assert beside({"weights_bytes": 5, "kv_cache_predicted_bytes": 7, "activations_bytes": None}) == [
        ("weights_bytes", 5, None), ("kv_cache_bytes", None, 7),
    ]  # fmt: skip
    assert beside({}) == []


def test_a_line_of_another_version_is_shown_last() -> None:
    assert beside({"scratch_bytes": 3, "other_bytes": 2}) == [("other_bytes", 2, None), ("scratch_bytes", 3, None)]


def test_weights_are_predicted_by_their_number_and_the_bits_of_the_quantization() -> None:
    assert predicted_weights(1_000, 32.0) == 4_000
    assert predicted_weights(1_001, 4.0) == 500
    assert predicted_weights(1_000, None) is None
