"""How weights are stored, as the row says it."""

from __future__ import annotations

from typing import Any

import pytest

from effillm_server.analysis.rows import row
from effillm_server.analysis.stored import COLUMN_TYPES, columns
from effillm_server.contract.evidence import Quantized
from tests.support.results import cell, measurement, result

EVIDENCE = Quantized(
    method="gptq-b4-g128", theoretical_bits=4, quantized_weights=800, seconds=12.5, disk_bytes=500,
    layers={"TorchLinear": 48, "AnotherLinear": 2},
).model_dump(mode="json")  # fmt: skip


def model(**changes: Any) -> dict[str, Any]:
    return {"bits_per_weight": 6.4, "details": {"quantization": EVIDENCE | changes}}


def test_reduction_in_theory_is_of_the_quantized_bits_and_the_measured_one_of_all_that_is_stored() -> None:
    on_processor, on_gpu = columns(model(), "float32"), columns(model(), "float16")
    assert on_processor["memory_reduction_theory"] == pytest.approx(1 - 4 / 32)
    assert on_processor["memory_reduction_weights"] == pytest.approx(1 - 6.4 / 32)
    assert on_gpu["memory_reduction_theory"] == pytest.approx(1 - 4 / 16)
    assert on_gpu["memory_reduction_weights"] == pytest.approx(1 - 6.4 / 16)


def test_time_size_and_kernels_are_columns_of_the_row() -> None:
    child = measurement()["child"]
    child["loaded_model"] |= model()
    got = row(result((), cell(quantization="gptq-b4-g128"), child=child))
    assert (got["theoretical_bits"], got["quantize_s"], got["disk_bytes"]) == (4, 12.5, 500)
    assert (got["quantized_weights"], got["quantized_layers"]) == (800, 50)
    assert got["quantized_by"] == "AnotherLinear x 2, TorchLinear x 48"
    assert got["quantization"] == "gptq-b4-g128"


def test_what_was_only_cast_took_no_time_and_quantized_nothing() -> None:
    got = columns(model(method="fp32", theoretical_bits=32, seconds=None, layers={}, quantized_weights=0), "float32")
    assert (got["quantize_s"], got["quantized_layers"], got["quantized_by"]) == (None, 0, None)
    assert got["memory_reduction_theory"] == 0


def test_bits_that_only_a_plan_knows_leave_the_theory_open() -> None:
    assert columns(model(theoretical_bits=None), "float32")["memory_reduction_theory"] is None


def test_an_engine_that_said_nothing_leaves_every_column_empty() -> None:
    got = row(result())
    assert {name: got[name] for name in COLUMN_TYPES} == dict.fromkeys(COLUMN_TYPES)
