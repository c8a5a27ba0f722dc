from __future__ import annotations

from datetime import date
from typing import Any

import pytest

from effillm_server.analysis.cells import cells
from effillm_server.analysis.cliffs import cliffs
from effillm_server.analysis.efficiency import batch_scaling, best_batches, cost, quantization
from effillm_server.analysis.facts import Facts
from effillm_server.catalog import Price
from tests.support.sweeps import Grid, Laws, Noise, invent

EXACT = Noise(within=0.0)
FACTS = Facts(noise_floor=0.02)


def per_instance(values: dict[int, float]) -> list[dict[str, Any]]:
    """Rows whose T(b) / b are `values`."""
    rows = invent(Grid(batch_size=tuple(values)), noise=EXACT)
    return [
        {**row, "throughput_tok_s_mean": values[row["batch_size"]] * row["batch_size"], "throughput_tok_s_std": 0.0}
        for row in rows
    ]


def test_batch_scaling_is_throughput_over_b_times_throughput_alone() -> None:
    found = batch_scaling(cells(invent(Grid(batch_size=(1, 4, 16)), Laws(beta=0.8), EXACT)), FACTS)
    assert {e["batch_size"]: e["eta"] for e in found} == pytest.approx({4: 4**-0.2, 16: 16**-0.2})
    assert all(e["low"] < e["eta"] < e["high"] for e in found)


def test_without_batch_one_there_is_no_batch_scaling() -> None:
    assert batch_scaling(cells(invent(Grid(batch_size=(2, 4)))), FACTS) == []


def test_the_best_batch_by_the_papers_definition_and_by_the_share_kept() -> None:
    (entry,) = best_batches(cells(per_instance({1: 100, 2: 120, 4: 130, 8: 90, 16: 40})), FACTS)
    assert entry["argmax"] == 4 and entry["argmax_not_ruled_out"] == [4]
    assert entry["largest_keeping_80"] == 8 and entry["largest_keeping_80_range"] == [8, 8]
    assert entry["throughput_peak"] == 8


def test_batch_sizes_that_noise_cannot_tell_apart_are_not_ruled_out() -> None:
    (entry,) = best_batches(cells(per_instance({1: 100, 2: 99, 4: 98, 8: 70})), FACTS)
    assert entry["argmax"] == 1 and entry["argmax_not_ruled_out"] == [1, 2, 4]
    (borderline,) = best_batches(cells(per_instance({1: 100, 2: 90, 4: 81, 8: 79})), FACTS)
    assert borderline["largest_keeping_80"] == 4 and borderline["largest_keeping_80_range"] == [2, 8]


def test_quantization_is_set_against_every_wider_unquantized_precision() -> None:
    found = quantization(cells(invent(Grid(quantization=("fp32", "fp16", "int8", "int4")), noise=EXACT)), FACTS)
    pairs = {(e["quantization"], e["baseline"]): e for e in found}
    assert set(pairs) == {("fp16", "fp32"), ("int8", "fp32"), ("int8", "fp16"), ("int4", "fp32"), ("int4", "fp16")}
    int8 = pairs["int8", "fp16"]
    assert int8["efficiency"]["value"] == pytest.approx(0.97)
    assert int8["memory_reduction_theory"] == 0.5 and int8["weights_reduction_measured"] == pytest.approx(0.5)
    assert 0 < int8["memory_reduction_measured"] < 0.5
    assert pairs["int4", "fp16"]["memory_reduction_theory"] == 0.75
    assert {pair for pair, entry in pairs.items() if entry["is_partner"]} == {
        (p, "fp32") for p in ("fp16", "int8", "int4")
    }


def theory(label: str, **columns: Any) -> float | None:
    """Memory reduction in theory of a row with this label against fp16."""
    base, row = invent(Grid(quantization=("fp16", "int8")), noise=EXACT)
    (entry,) = quantization(cells([base, {**row, "quantization": label, **columns}]), FACTS)
    reduction: float | None = entry["memory_reduction_theory"]
    return reduction


def test_theory_takes_the_bits_that_the_loaded_model_had_before_those_of_its_label() -> None:
    # A published three-bit checkpoint, and a plan whose linear layers came out at 5.2 bits.
    assert theory("gptq", theoretical_bits=3.0) == pytest.approx(1 - 3 / 16)
    assert theory("gptq") == pytest.approx(1 - 4 / 16)
    assert theory("dynamic-m0.5", theoretical_bits=5.2) == pytest.approx(1 - 5.2 / 16)
    assert theory("dynamic-m0.5") == pytest.approx(1 - 8 / 16)
    assert theory("dynamic-q0.05", theoretical_bits=4.4) == pytest.approx(1 - 4.4 / 16)
    assert theory("dynamic-q0.05") is None


def test_both_sides_shares_of_the_device_stand_beside_each_pair() -> None:
    base, row = invent(Grid(quantization=("fp32", "int8")), noise=EXACT)
    row |= {"mbu_decode": 0.1, "mfu_prefill": 0.02, "dequantization_share_decode": 0.3}
    (entry,) = quantization(cells([{**base, "mbu_decode": 0.6, "mfu_prefill": 0.5}, row]), FACTS)
    own, theirs = entry["shares"]["own"], entry["shares"]["baseline"]
    assert (own["mbu_decode"], own["mfu_prefill"], own["dequantization_share_decode"]) == (0.1, 0.02, 0.3)
    assert (theirs["mbu_decode"], theirs["mfu_prefill"], theirs["dequantization_share_decode"]) == (0.6, 0.5, None)


def test_cost_is_throughput_per_dollar_and_dollars_per_million_tokens() -> None:
    prices = {"cpu": Price(purchase_usd=2000, hourly_usd=0.9, source="invoice", date=date(2026, 1, 1))}
    (cell,) = cells(invent(Grid(), noise=EXACT))
    (entry,) = cost([cell], Facts(prices=prices))
    throughput = cell.rows[0]["throughput_tok_s_mean"]
    assert entry["tok_s_per_usd"] == pytest.approx(throughput / 2000)
    assert entry["usd_per_million_tokens"] == pytest.approx(0.9 / (throughput * 3600) * 1e6)
    assert (entry["price_source"], entry["price_date"]) == ("invoice", "2026-01-01")
    assert cost([cell], Facts()) == []


def test_a_step_beyond_growth_and_noise_is_a_cliff_and_smooth_growth_is_none() -> None:
    rows = invent(Grid(sequence_length=(128, 256, 512, 1024, 2048)), Laws(omega=1.0), Noise(within=0.005))
    assert cliffs(cells(rows), Facts(noise_floor=0.03)) == []
    for row in rows:
        if row["sequence_length"] >= 1024:
            row["ttft_s_mean"] *= 2.0
    (cliff,) = cliffs(cells(rows), Facts(noise_floor=0.03))
    assert (cliff["axis"], cliff["from"], cliff["to"]) == ("sequence_length", 512, 1024)
    assert cliff["excess"] == pytest.approx(2.0, rel=0.1)


def test_a_step_inside_the_noise_is_no_cliff() -> None:
    rows = invent(Grid(sequence_length=(128, 256, 512, 1024)), Laws(omega=1.0), Noise(within=0.005))
    rows[2]["ttft_s_mean"] *= 1.35
    assert cliffs(cells(rows), Facts(noise_floor=0.2)) == []
