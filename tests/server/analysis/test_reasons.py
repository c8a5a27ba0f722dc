from __future__ import annotations

from typing import Any

from effillm_server.analysis.cells import Cell, cells
from effillm_server.analysis.facts import Facts
from effillm_server.analysis.reasons import reason, shares
from tests.support.sweeps import Grid, Noise, invent

FACTS = Facts(noise_floor=0.02)
PARTNER = {"mbu_decode": 0.6, "mfu_prefill": 0.5}


def pair(speed: float, batch: int = 1, ttft: float = 1.0, **own: Any) -> tuple[Cell, Cell]:
    """An int8 cell at `speed` times its fp32 partner's, its first token `ttft` times as late, with these columns."""
    fp32, int8 = invent(Grid(quantization=("fp32", "int8"), batch_size=(batch,)), noise=Noise(within=0.0))
    int8 |= {
        "throughput_tok_s_mean": fp32["throughput_tok_s_mean"] * speed, "tpot_s_mean": fp32["tpot_s_mean"] / speed,
        "ttft_s_mean": fp32["ttft_s_mean"] * ttft, **own,
    }  # fmt: skip
    found = {cell.axes["quantization"]: cell for cell in cells([{**fp32, **PARTNER}, int8])}
    return found["int8"], found["fp32"]


def said(speed: float, **changes: Any) -> str | None:
    return reason(*pair(speed, **changes), FACTS)


def test_shares_are_those_of_the_rows_and_none_where_nobody_measured() -> None:
    own, theirs = pair(0.5, mbu_decode=0.2)
    assert shares(theirs)["mbu_decode"] == 0.6 and shares(own)["mbu_decode"] == 0.2
    assert shares(own)["dequantization_share_decode"] is None


def test_dequantization_that_takes_all_of_the_difference_accounts_for_it() -> None:
    # Twice as long a step, six tenths of it dequantization: without that it would be the faster one.
    text = said(0.5, dequantization_share_decode=0.6)
    assert text == (
        "int8 is slower than fp32 here: 60% of its decoding time turns codes back into numbers (profiled at batch size 1), "
        "which is enough to account for it"
    )


def test_dequantization_that_takes_part_of_the_difference_accounts_for_that_part() -> None:
    # Of a step of 2 the difference is 1, dequantization 0.4 x 2 / 2 = 0.4 of 2 = 0.8 of it.
    assert str(said(0.5, dequantization_share_decode=0.4)).endswith("which is 80% of the difference")


def test_of_a_larger_batch_than_was_profiled_nothing_is_reckoned() -> None:
    text = str(said(0.5, batch=4, dequantization_share_decode=0.6))
    assert "60% of its decoding time" in text and "account" not in text and "difference" not in text


def test_bandwidth_left_unused_says_that_reading_the_weights_is_not_the_limit() -> None:
    assert said(0.5, mbu_decode=0.08) == (
        "int8 is slower than fp32 here: its decoding steps reach 8.0% of the memory bandwidth, those of fp32 60%: "
        "reading the weights, 25% the size, is not what takes the time"
    )


def test_a_late_first_token_is_told_from_the_matrix_rate() -> None:
    assert str(said(0.5, ttft=3.0, mfu_prefill=0.1)).endswith(
        "its prefill reaches 10% of the rate of the type it multiplies in, that of fp32 50%"
    )
    assert said(0.5, ttft=1.0, mfu_prefill=0.1) is None


def test_a_faster_precision_reads_less() -> None:
    assert said(2.0, mbu_decode=0.3) == (
        "int8 is faster than fp32 here: a decoding step reads weights of 25% the size, at 30% of the memory bandwidth instead of 60%"
    )


def test_within_noise_and_without_numbers_there_is_no_reason() -> None:
    assert said(0.99, mbu_decode=0.08, dequantization_share_decode=0.6) is None
    assert said(0.5) is None
    assert said(2.0) is None
    assert said(0.5, dequantization_share_decode=0.01) is None
