from __future__ import annotations

from typing import Any

import pytest

from effillm_worker.quality import shares
from effillm_worker.quantization.codes import UniformLinear, linear_layers, replace, weight_of
from tests.support.child import TINY_NEOX


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
