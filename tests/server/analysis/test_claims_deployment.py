from __future__ import annotations

from typing import Any

import pytest

from effillm_server.analysis import Facts, analyse
from effillm_server.analysis.claims import CONFIRMED, REFUTED, UNDECIDED
from tests.support.sweeps import SIZES, Grid, Laws, Noise, invent

FACTS = Facts(parameters=SIZES, noise_floor=0.02)
QUIET = Noise(within=0.004)
BATCHES = (1, 2, 4, 8, 16, 32)
LARGE = ("EleutherAI/pythia-1.4b",)
DAY_S = 86_400


def claim(name: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    return next(c for c in analyse(rows, FACTS)["claims"] if c["name"] == name)


def precisions(**speeds: float) -> list[dict[str, Any]]:
    """One cell at each precision, `speeds` times as fast as 100 tok/s; memory by its bits."""
    rows = invent(Grid(models=LARGE, quantization=tuple(speeds)), noise=QUIET)
    return [{**row, "throughput_tok_s_mean": 100 * speeds[row["quantization"]]} for row in rows]


def with_values(rows: list[dict[str, Any]], precision: str, **values: Any) -> list[dict[str, Any]]:
    return [row | values if row["quantization"] == precision else row for row in rows]


def batches(**speeds: float) -> list[dict[str, Any]]:
    """One cell at each batch size `bN`, so many times as fast as the one of batch 1."""
    by_batch = {int(name[1:]): speed for name, speed in speeds.items()}
    rows = invent(Grid(batch_size=tuple(by_batch)), noise=QUIET)
    return [{**row, "throughput_tok_s_mean": 100 * by_batch[row["batch_size"]]} for row in rows]


@pytest.mark.parametrize(
    ("speeds", "verdict"),
    [
        ({"fp16": 1.0, "int8": 0.9, "int4": 0.7}, CONFIRMED),
        ({"fp16": 1.0, "int8": 0.4, "int4": 0.7}, CONFIRMED),  # int8 is larger and slower: never in its way
        ({"fp16": 1.0, "int8": 0.9, "int4": 1.3}, REFUTED),
        ({"fp16": 1.0, "int4": 0.99}, UNDECIDED),  # inside the noise
    ],
)
def test_int4_is_for_tight_memory_when_what_is_faster_is_larger(speeds: dict[str, float], verdict: str) -> None:
    found = claim("int4-when-tight", precisions(**speeds))
    assert found["verdict"] == verdict
    assert "% less peak memory" in found["summary"] and len(found["evidence"][0]["jobs"]) == len(speeds)


def test_int4_is_never_what_to_choose_beside_something_faster_that_is_no_larger() -> None:
    rows = precisions(fp16=1.0, int8=0.9, int4=0.7)
    int4_bytes = next(row["ram_peak_bytes"] for row in rows if row["quantization"] == "int4")
    found = claim("int4-when-tight", with_values(rows, "int8", ram_peak_bytes=round(1.02 * int4_bytes)))
    assert found["verdict"] == REFUTED
    assert "times int8, a wider one, with 2% less peak memory" in found["summary"]
    # By five points of memory it would be: the limit is the one the claim states.
    larger = with_values(rows, "int8", ram_peak_bytes=round(1.10 * int4_bytes))
    assert claim("int4-when-tight", larger)["verdict"] == CONFIRMED


def test_a_wider_precision_as_small_as_int4_and_perhaps_as_fast_leaves_it_open() -> None:
    rows = precisions(fp16=1.0, int8=0.7, int4=0.7)
    int4_bytes = next(row["ram_peak_bytes"] for row in rows if row["quantization"] == "int4")
    assert claim("int4-when-tight", rows)["verdict"] == CONFIRMED
    assert claim("int4-when-tight", with_values(rows, "int8", ram_peak_bytes=int4_bytes))["verdict"] == UNDECIDED


def test_int4_is_held_against_wider_precisions_at_batch_one_only() -> None:
    only_four_bits = claim("int4-when-tight", precisions(int4=1.0, gptq=1.2))
    larger_batch = claim("int4-when-tight", invent(Grid(quantization=("fp16", "int4"), batch_size=(4,))))
    for found in (only_four_bits, larger_batch):
        assert found["verdict"] == UNDECIDED
        assert found["summary"] == "undecided: needs one model at int4 and a wider precision, batch size 1"


@pytest.mark.parametrize(
    ("speed", "quantize_s", "verdict"),
    [
        (1.5, 600.0, CONFIRMED),
        (0.8, 600.0, REFUTED),  # slower: earns nothing
        (0.8, None, REFUTED),  # and then it does not matter what it cost
        (1.5, 100_000.0, REFUTED),
        (1.01, 600.0, UNDECIDED),  # perhaps no faster at all
        (1.5, 0.5 * DAY_S, UNDECIDED),  # a day lies within the interval
        (1.5, None, UNDECIDED),  # published quantized: nobody here knows what it took
    ],
)
def test_gptq_pays_when_a_day_of_generating_earns_its_quantization_back(
    speed: float, quantize_s: float | None, verdict: str
) -> None:
    rows = with_values(precisions(int4=1.0, gptq=speed), "gptq", quantize_s=quantize_s)
    assert claim("gptq-offline", rows)["verdict"] == verdict


def test_the_time_to_earn_a_quantization_back_is_its_closed_form() -> None:
    rows = with_values(precisions(int4=1.0, gptq=1.5), "gptq", quantize_s=600.0)
    exact = analyse([{**row, "throughput_tok_s_std": 0.0} for row in rows], Facts(parameters=SIZES, noise_floor=0.0))
    text = next(c for c in exact["claims"] if c["name"] == "gptq-offline")["evidence"][0]["text"]
    # In t seconds 1.5 t seconds' worth: 600 s are won after 600 / 0.5 = 1200 s.
    assert "gptq runs at 1.50 (1.50 to 1.50) times int4" in text
    assert "its 600 s of quantization are earned back after 1,200 s of generating, at the latest after 1,200 s" in text


def test_gptq_without_int4_beside_it_says_what_it_needs() -> None:
    found = claim("gptq-offline", precisions(fp16=1.0, gptq=1.0))
    assert found["summary"] == "undecided: needs one model at gptq (quantized here) and int4"


@pytest.mark.parametrize("label", ["gptq", "gptq-b4-g64", "gptq-b4-g128-act"])
def test_every_four_bit_gptq_counts_whatever_its_other_options(label: str) -> None:
    rows = with_values(precisions(int4=1.0, gptq=1.5), "gptq", quantize_s=60.0)
    renamed = with_values(rows, "gptq", quantization=label)
    assert claim("gptq-offline", renamed)["verdict"] == CONFIRMED
    assert claim("gptq-offline", with_values(rows, "gptq", quantization="gptq-b8-g128"))["evidence"] == []


@pytest.mark.parametrize(
    ("speeds", "verdict"),
    [
        ({"b1": 1, "b2": 2.3, "b4": 5.2, "b8": 11.5, "b16": 11}, CONFIRMED),  # T(8)/8 is largest, and T(8) too
        ({"b1": 1, "b2": 1.05, "b4": 1.0, "b8": 0.9}, CONFIRMED),  # more sequences bring nothing: one at a time
        ({"b1": 1, "b2": 1.8, "b4": 3.0, "b8": 4.5}, REFUTED),  # one at a time, where eight bring 4.5 times as much
        ({"b1": 1, "b2": 2.3, "b4": 5.2, "b8": 11.5}, UNDECIDED),  # what comes beyond 8 nobody knows
        ({"b1": 1, "b2": 2.01, "b4": 2.5, "b8": 2.4}, UNDECIDED),  # 1 and 2 cannot be told apart, and 2 may keep 80 %
    ],
)
def test_choosing_the_batch_by_the_largest_share_each_sequence_gets(speeds: dict[str, float], verdict: str) -> None:
    found = claim("many-users", batches(**speeds))
    assert found["verdict"] == verdict
    assert "of the highest throughput" in found["summary"] and found["evidence"][0]["jobs"]


def test_where_throughput_grows_less_than_in_proportion_the_rule_serves_one_user_at_a_time() -> None:
    found = claim("many-users", invent(Grid(batch_size=BATCHES), Laws(beta=0.8), QUIET))
    assert found["verdict"] == REFUTED
    assert "T(b)/b is largest at b = 1, with 0.06" in found["summary"]


@pytest.mark.parametrize("sizes", [(1, 2), (2, 4, 8)], ids=["no batch of four", "no batch of one"])
def test_too_few_batch_sizes_say_what_is_needed(sizes: tuple[int, ...]) -> None:
    found = claim("many-users", invent(Grid(batch_size=sizes)))
    assert found["verdict"] == UNDECIDED
    assert found["summary"] == "undecided: needs batch 1 and at least one of 4 or more, beyond the peak of throughput"
