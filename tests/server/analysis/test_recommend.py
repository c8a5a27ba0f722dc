from __future__ import annotations

from datetime import date
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from effillm_server.analysis.facts import Facts
from effillm_server.analysis.recommend import AIMS, Constraints, recommend
from effillm_server.catalog import Price
from effillm_server.errors import BadInput
from tests.support.sweeps import SIZES, Grid, Noise, invent

PRICES = {
    "cpu": Price(purchase_usd=2000, hourly_usd=0.5, source="invoice", date=date(2026, 1, 1)),
    "t4": Price(purchase_usd=2500, hourly_usd=0.6, source="invoice", date=date(2026, 1, 1)),
}
FACTS = Facts(parameters=SIZES, prices=PRICES, noise_floor=0.02)
ROWS = invent(
    Grid(
        models=tuple(SIZES)[:4],
        hardware=("cpu", "t4"),
        quantization=("fp32", "fp16", "int8", "int4"),
        batch_size=(1, 4, 16),
    ),
    noise=Noise(0.01),
)


def best(metric: str, rows: list[dict[str, Any]], *, most: bool) -> dict[str, Any]:
    return (max if most else min)(rows, key=lambda row: row[f"{metric}_mean"])


def test_without_constraints_the_fastest_or_one_it_ties_with_is_recommended() -> None:
    answer = recommend(ROWS, "throughput", facts=FACTS)
    winner = best("throughput_tok_s", ROWS, most=True)
    group = [answer["recommended"], *answer["ties"]]
    assert winner["job"] in {job for candidate in group for job in candidate["jobs"]}
    assert answer["considered"] == len(ROWS)


def test_a_clear_winner_comes_with_its_margin_and_significance() -> None:
    rows = [row for row in ROWS if row["quantization"] in ("fp16", "int4")]
    answer = recommend(rows, "throughput", facts=FACTS)
    assert answer["is_tie"] is False and answer["next"]["significant"] is True
    assert answer["next"]["advantage"] > 0.1 and "better than the next" in answer["sentence"]


def test_ties_are_called_ties_and_the_one_with_least_memory_is_named() -> None:
    rows = invent(Grid(quantization=("fp32", "fp16", "int8")), noise=Noise(within=0.01))
    for row in rows:
        row["throughput_tok_s_mean"] = 100.0
    answer = recommend(rows, "throughput", facts=FACTS)
    assert answer["is_tie"] is True and len(answer["ties"]) == 2
    assert answer["recommended"]["quantization"] == "int8" and "tie" in answer["sentence"]


LIMIT = st.none() | st.floats(0.3, 3)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["throughput", "latency", "multi-user", "cost"]), LIMIT, LIMIT, LIMIT, LIMIT)
def test_no_recommendation_ever_breaks_a_constraint(
    aim: str, memory: float | None, ttft: float | None, hourly: float | None, throughput: float | None
) -> None:
    limits = Constraints(
        max_memory_bytes=memory and memory * 6e8, max_ttft_s=ttft and ttft * 0.05, max_hourly_usd=hourly and hourly * 0.5,
        min_throughput_tok_s=throughput and throughput * 300,
    )  # fmt: skip
    answer = recommend(ROWS, aim, limits, FACTS)
    if answer["recommended"] is None:
        assert answer["sentence"].startswith("no measured configuration keeps all limits") or answer["allowed"] == 0
        return
    for candidate in (answer["recommended"], *answer["ties"], *answer["pareto"]):
        (row,) = [row for row in ROWS if row["job"] in candidate["jobs"]]
        peak = row["vram_peak_bytes"] or row["ram_peak_bytes"]
        assert limits.max_memory_bytes is None or peak <= limits.max_memory_bytes
        assert limits.max_ttft_s is None or row["ttft_s_ci95_high"] <= limits.max_ttft_s
        assert limits.max_hourly_usd is None or PRICES[row["hardware"]].hourly_usd <= limits.max_hourly_usd
        assert limits.min_throughput_tok_s is None or row["throughput_tok_s_ci95_low"] >= limits.min_throughput_tok_s


def test_what_would_change_the_answer_names_the_limit_and_the_value_it_would_need() -> None:
    answer = recommend(ROWS, "throughput", Constraints(max_memory_bytes=4.6e8), FACTS)
    (change,) = answer["what_would_change_it"]
    assert change["limit"] == "max_memory_bytes" and change["needed"] > 4.6e8
    again = recommend(ROWS, "throughput", Constraints(max_memory_bytes=change["needed"]), FACTS)
    assert change["jobs"][0] in {job for c in (again["recommended"], *again["ties"]) for job in c["jobs"]}


def test_limits_nothing_keeps_are_answered_with_the_closest_values() -> None:
    answer = recommend(ROWS, "latency", Constraints(max_memory_bytes=1e6), FACTS)
    assert answer["recommended"] is None
    assert "peak memory at most 1 MB: the best there is has" in answer["sentence"]


def test_a_quality_limit_is_kept_by_no_row_while_quality_is_not_measured() -> None:
    answer = recommend(ROWS, "throughput", Constraints(max_quality_loss=0.05), FACTS)
    assert answer["recommended"] is None and "not measured" in answer["sentence"]


def judged(quantization: str, loss: float, half: float) -> list[dict[str, Any]]:
    """Rows of one precision whose perplexity rose by `loss`, give or take `half`."""
    quality = {"quality_loss": loss, "quality_loss_ci95_low": loss - half, "quality_loss_ci95_high": loss + half}
    return [{**row, **quality} for row in ROWS if row["quantization"] == quantization and row["hardware"] == "cpu"]


def test_a_quality_limit_is_kept_by_the_upper_bound_of_the_loss_only() -> None:
    rows = [*judged("fp16", 0.0, 0.0), *judged("int8", 0.012, 0.005), *judged("int4", 0.06, 0.01)]
    within = {
        q: recommend(rows, "throughput", Constraints(max_quality_loss=q), FACTS) for q in (0.01, 0.015, 0.02, 0.08)
    }
    allowed = {q: answer["allowed"] for q, answer in within.items()}
    each = len(rows) // 3
    assert allowed == {0.01: each, 0.015: each, 0.02: 2 * each, 0.08: 3 * each}
    assert within[0.01]["recommended"]["quantization"] == "fp16"
    assert within[0.01]["recommended"]["values"]["quality_loss"] == 0.0


def test_what_a_looser_quality_limit_would_give_is_said_with_the_loss_it_needs() -> None:
    slow, fast = judged("fp32", 0.0, 0.0), judged("int8", 0.03, 0.005)
    answer = recommend([*slow, *fast], "throughput", Constraints(max_quality_loss=0.01), FACTS)
    (looser,) = answer["what_would_change_it"]
    assert answer["recommended"]["quantization"] == "fp32"
    assert looser["needed"] == pytest.approx(0.035) and "with quality loss up to 3.5%" in looser["sentence"]


def test_latency_means_the_shortest_first_token_and_cost_the_fewest_dollars() -> None:
    quick = recommend(ROWS, "latency", facts=FACTS)
    jobs = {job for c in (quick["recommended"], *quick["ties"]) for job in c["jobs"]}
    assert best("ttft_s", ROWS, most=False)["job"] in jobs
    cheap = recommend(ROWS, "cost", facts=FACTS)
    fastest_per_dollar = max(ROWS, key=lambda row: row["throughput_tok_s_mean"] / PRICES[row["hardware"]].hourly_usd)
    assert fastest_per_dollar["job"] in {job for c in (cheap["recommended"], *cheap["ties"]) for job in c["jobs"]}


def test_many_users_get_the_batch_that_keeps_four_fifths_of_the_speed_alone() -> None:
    rows = invent(Grid(batch_size=(1, 2, 4, 8)), noise=Noise(within=0.0))
    shares = {1: 1.0, 2: 0.95, 4: 0.85, 8: 0.6}
    for row in rows:
        row["throughput_tok_s_mean"] = 100 * row["batch_size"] * shares[row["batch_size"]]
    assert recommend(rows, "multi-user", facts=FACTS)["recommended"]["batch_size"] == 4


def test_rows_can_be_narrowed_before_choosing() -> None:
    answer = recommend(ROWS, "throughput", Constraints(where={"hardware": ("cpu",), "quantization": ("fp32",)}), FACTS)
    assert (answer["recommended"]["hardware"], answer["recommended"]["quantization"]) == ("cpu", "fp32")


def test_invalid_rows_are_never_recommended() -> None:
    rows = [dict(row) for row in ROWS]
    winner = max(rows, key=lambda row: row["throughput_tok_s_mean"])
    winner["verdict"] = "invalid"
    answer = recommend(rows, "throughput", facts=FACTS)
    assert winner["job"] not in answer["rests_on"] and "1 invalid" in answer["note"]


def test_what_nothing_can_be_said_about_is_refused_with_the_reason() -> None:
    with pytest.raises(BadInput, match="no aim 'speed'; there are throughput"):
        recommend(ROWS, "speed")
    with pytest.raises(BadInput, match="no valid measured row"):
        recommend([], "throughput")
    with pytest.raises(BadInput, match="no readable energy counter"):
        recommend(ROWS, "energy", facts=FACTS)
    with pytest.raises(BadInput, match="EFFILLM_PRICES"):
        recommend(ROWS, "cost", facts=Facts())
    with pytest.raises(BadInput, match="batch size 1"):
        recommend([row for row in ROWS if row["batch_size"] > 1], "multi-user", facts=FACTS)
    assert set(AIMS) == {"throughput", "latency", "multi-user", "cost", "energy"}
