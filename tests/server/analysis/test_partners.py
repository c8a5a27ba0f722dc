from __future__ import annotations

import math
from typing import Any

import pytest

from effillm_server.analysis.cells import cells
from effillm_server.analysis.efficiency import quantization
from effillm_server.analysis.facts import Facts
from effillm_server.analysis.partners import NEEDED, beside
from effillm_server.analysis.rows import COLUMNS, PARTNER_TYPES
from tests.support.sweeps import SPEED, Grid, Noise, invent

EXACT = Noise(within=0.0)
PRECISIONS = ("fp32", "fp16", "int8", "int4")


def by_precision(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    found = beside(rows)
    return {row["quantization"]: found[row["job"]] for row in rows if row["job"] in found}


@pytest.mark.parametrize(("hardware", "partner"), [("cpu", "fp32"), ("t4", "fp16")])
def test_the_partner_is_single_precision_on_a_processor_and_half_on_a_gpu(hardware: str, partner: str) -> None:
    rows = invent(Grid(hardware=(hardware,), quantization=PRECISIONS), noise=EXACT)
    found = by_precision(rows)
    assert partner not in found
    int8 = found["int8"]
    value = SPEED["int8"] / SPEED[partner]
    # Two processes that differ by 6 % of noise between them, the one assumed until a machine's own is known.
    reach = math.exp(1.959964 * Facts().noise_floor)
    assert int8["unquantized_partner"] == partner
    assert int8["quantization_efficiency"] == pytest.approx(value)
    assert int8["quantization_efficiency_ci95_low"] == pytest.approx(value / reach, rel=1e-6)
    assert int8["quantization_efficiency_ci95_high"] == pytest.approx(value * reach, rel=1e-6)
    kind = "ram" if hardware == "cpu" else "vram"
    peak = {row["quantization"]: row[f"{kind}_peak_bytes"] for row in rows}
    assert int8["memory_reduction_measured"] == pytest.approx(1 - peak["int8"] / peak[partner])


def test_a_wider_precision_stands_in_where_the_reference_was_not_measured() -> None:
    found = by_precision(invent(Grid(hardware=("t4",), quantization=("fp32", "int8")), noise=EXACT))
    assert set(found) == {"int8"} and found["int8"]["unquantized_partner"] == "fp32"


def test_a_row_without_any_partner_and_an_invalid_one_have_nothing() -> None:
    assert beside(invent(Grid(quantization=("int8", "int4")))) == {}
    rows = invent(Grid(quantization=("fp32", "int8")))
    assert beside([rows[0], {**rows[1], "verdict": "invalid"}]) == {}
    assert beside([rows[0], {**rows[1], "batch_size": 2}]) == {}


def test_repeats_of_a_cell_share_the_numbers_of_the_analysis() -> None:
    rows = invent(Grid(quantization=("fp32", "int8"), repeats=3), noise=Noise(between=0.05), seed=3)
    (entry,) = quantization(cells(rows), Facts())
    found = beside(rows)
    assert set(found) == {row["job"] for row in rows if row["quantization"] == "int8"}
    for columns in found.values():
        assert columns["quantization_efficiency"] == entry["efficiency"]["value"]
        assert columns["quantization_efficiency_ci95_low"] == entry["efficiency"]["low"]
        assert columns["memory_reduction_measured"] == entry["memory_reduction_measured"]


def test_the_columns_are_those_declared_and_need_no_more_than_is_named() -> None:
    rows = invent(Grid(quantization=PRECISIONS, repeats=2), noise=Noise(between=0.05))
    for row in rows:
        row |= {"mbu_decode": 0.6 if row["quantization"] == "fp32" else 0.1, "dequantization_share_decode": 0.4}
    slowed = [
        {**row, "throughput_tok_s_mean": row["throughput_tok_s_mean"] / (4 if row["quantization"] == "int8" else 1)}
        for row in rows
    ]
    found = beside(slowed)
    assert found == beside({name: row[name] for name in NEEDED} for row in slowed)
    assert any(columns["quantization_reason"] for columns in found.values())
    for columns in found.values():
        assert set(columns) == set(PARTNER_TYPES) <= set(COLUMNS)
        assert all(value is None or isinstance(value, PARTNER_TYPES[name]) for name, value in columns.items())
