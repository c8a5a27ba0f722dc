from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from effillm_server.contract.quality import QualityPlan, TimeShares
from effillm_worker.engines.base import LoadRequest
from effillm_worker.engines.transformers import TransformersEngine
from effillm_worker.quality import shares
from effillm_worker.quantization.codes import UniformLinear, linear_layers, replace, weight_of
from tests.support.child import TINY_NEOX
from tests.support.fake_engine import cell


@pytest.fixture
def model() -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(**TINY_NEOX)
    return AutoModelForCausalLM.from_config(config).eval()


def test_layers_that_unpack_their_codes_spend_time_on_it_and_are_left_as_they_were(model: Any) -> None:
    for name, layer in linear_layers(model).items():
        replace(model, name, UniformLinear(weight_of(layer), layer.bias, 3, channel=True))
    found = shares.measure(model, range(1, 100), 128)
    assert 0 < found.prefill_dequantization < 1
    assert 0 < found.decode_dequantization < 1
    assert (found.prompt_tokens, found.decode_steps) == (99, 8)
    assert all("matrix" not in module.__dict__ for module in model.modules())


def test_an_unquantized_model_spends_none_and_its_largest_operations_are_named(model: Any) -> None:
    found = shares.measure(model, range(1, 300), 128)
    assert (found.prefill_dequantization, found.decode_dequantization) == (0.0, 0.0)
    assert found.prompt_tokens == 120  # what the context window leaves beside the decoding steps
    assert found.decode_operations
    assert all(name.startswith("aten::") for name in found.decode_operations)
    assert 0.5 < sum(found.decode_operations.values()) <= 1.001


def test_what_a_dequantizing_operation_calls_counts_with_it() -> None:
    class Event:
        def __init__(self, name: str, parent: Event | None = None) -> None:
            self.name, self.cpu_parent = name, parent

    outer = Event("bitsandbytes::dequantize_4bit", Event("aten::linear"))
    assert shares._is_dequantizing(Event("aten::mul", outer))
    assert not shares._is_dequantizing(Event("aten::mul", Event("aten::linear")))


def profiled(label: str, layer: str, cache: Path) -> TimeShares:
    """Shares of a tiny model of synthetic weights in real layers of bitsandbytes, as the engine finds them."""
    wide = TINY_NEOX | {"hidden_size": 256, "intermediate_size": 1024}
    request = LoadRequest(
        cell=cell(quantization=label), threads=1, device="cpu", cache_dir=str(cache), architecture=wide
    )
    engine = TransformersEngine()
    engine.start(request)
    loaded = engine.load(request)
    found = engine.judge(QualityPlan(), 60.0)
    engine.unload()
    assert loaded.details["quantization"]["layers"] == {layer: 8}
    assert found.losses is None and found.shares is not None
    return found.shares


@pytest.mark.quantization
def test_int8_of_bitsandbytes_spends_time_on_dequantization_as_operations_of_its_own(tmp_path: Path) -> None:
    found = profiled("int8", "Linear8bitLt", tmp_path)
    # It multiplies codes, then rescales the whole numbers that come out: `int8_mm_dequant`, not always among the largest.
    assert 0 < found.prefill_dequantization < 1
    assert 0 < found.decode_dequantization < 1


@pytest.mark.quantization
def test_int4_of_bitsandbytes_dequantizes_apart_or_inside_its_product_and_the_names_tell_which(tmp_path: Path) -> None:
    found = profiled("int4", "Linear4bit", tmp_path)
    # A processor with bfloat16 products (AVX-512) has one kernel for both; any other unpacks the matrix first.
    is_fused = "bitsandbytes::gemv_4bit" in found.decode_operations
    assert is_fused is not ("bitsandbytes::dequantize_4bit" in found.decode_operations)
    assert (found.decode_dequantization == 0) is is_fused
    assert (found.prefill_dequantization == 0) is is_fused
