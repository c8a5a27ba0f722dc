from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from effillm_worker.engines.base import Unsupported
from effillm_worker.quantization import BUILTIN, base, method


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    logging.getLogger("bitsandbytes").setLevel(logging.NOTSET)


def bitsandbytes_layer(name: str, *, double: bool = False) -> Any:
    import bitsandbytes

    plain = torch.nn.Linear(256, 128, bias=False)
    options: dict[str, Any] = {"bias": False}
    options |= (
        {"has_fp16_weights": False}
        if name == "Linear8bitLt"
        else {
            "quant_type": "nf4",
            "compress_statistics": double,
        }
    )
    layer = getattr(bitsandbytes.nn, name)(256, 128, **options)
    layer.load_state_dict(plain.state_dict())
    return layer.to("cpu"), plain


LABELS = {"uniform": "uniform-b4", "dynamic": "dynamic-m0.5", "qat": "qat-b4"}  # these have no label without an option


@pytest.mark.parametrize("name", sorted(BUILTIN))
def test_every_registered_method_carries_its_label(name: str) -> None:
    label = LABELS.get(name, name)
    assert method(label).name == label


def test_unknown_method_names_those_there_are() -> None:
    with pytest.raises(Unsupported, match="fp32, fp16, bf16, int8, int4, gptq"):
        method("int3")


@pytest.mark.parametrize(
    ("name", "dtype", "bits"), [("fp32", "float32", 32), ("fp16", "float16", 16), ("bf16", "bfloat16", 16)]
)
def test_plain_weights_take_the_bits_of_their_dtype(name: str, dtype: str, bits: int) -> None:
    method(name).check("cpu", dtype)
    stored = base.count(method(name), [torch.ones(10, 3, dtype=getattr(torch, dtype))])
    assert stored == base.Stored(30, 30 * bits // 8)


def test_plain_method_refuses_to_compute_in_another_dtype() -> None:
    with pytest.raises(Unsupported, match="fp16 stores and computes in float16, the cell asks for float32"):
        method("fp16").check("cpu", "float32")


def test_int8_stores_a_byte_a_weight_and_a_scale_a_row() -> None:
    layer, _ = bitsandbytes_layer("Linear8bitLt")
    assert method("int8").stored(layer.weight) == base.Stored(256 * 128, 256 * 128 + 4 * 128)


def test_int4_stores_two_weights_a_byte_and_a_scale_a_block_of_64() -> None:
    layer, _ = bitsandbytes_layer("Linear4bit")
    scales = 4 * 256 * 128 // 64
    assert method("int4").stored(layer.weight) == base.Stored(256 * 128, 256 * 128 // 2 + scales + 16 * 4)


def test_int4_counts_the_scales_of_scales_of_double_quantization() -> None:
    layer, _ = bitsandbytes_layer("Linear4bit", double=True)
    blocks = 256 * 128 // 64
    scales = (
        blocks + 4 * -(-blocks // 256) + 256 * 4 + 4
    )  # a byte a block, a float a 256 blocks, their code, the offset
    assert method("int4").stored(layer.weight) == base.Stored(256 * 128, 256 * 128 // 2 + 16 * 4 + scales)


@pytest.mark.parametrize(("name", "error"), [("Linear8bitLt", 0.02), ("Linear4bit", 0.15)])
def test_quantized_layer_computes_what_the_plain_one_does(name: str, error: float) -> None:
    layer, plain = bitsandbytes_layer(name)
    inputs = torch.randn(4, 256, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, found = plain(inputs), layer(inputs)
    assert (found - expected).norm() / expected.norm() < error


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_starting_a_method_runs_its_kernel_and_silences_its_log(name: str) -> None:
    method(name).start("cpu", "float32")
    assert logging.getLogger("bitsandbytes").level == logging.ERROR


def test_missing_package_is_named_with_the_extra_that_brings_it() -> None:
    said = r"^int8 needs nonesuch_package, which this runtime does not have: install effillm\[worker\]$"
    with pytest.raises(Unsupported, match=said):
        base.require(("nonesuch_package", "torch"), "int8")


def test_an_environment_without_effillm_is_told_the_bare_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "distributions", lambda **_: iter(()))
    with pytest.raises(Unsupported, match=r"install it there \(\S+ -m pip install nonesuch_package\)$"):
        base.require(("nonesuch_package", "torch"), "int8")


def test_gptq_says_which_libraries_it_would_need(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("effillm_worker.quantization.gptq.LIBRARIES", {"nonesuch_package": "nonesuch"})
    with pytest.raises(Unsupported, match=r"needs GPTQModel or auto-gptq.*effillm runtime create autogptq"):
        method("gptq").check("cpu", "float32")


def test_kernels_count_modules_that_hold_parameters() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU(), torch.nn.Linear(2, 2), torch.nn.LayerNorm(2))
    assert base.kernels(model.modules()) == {"LayerNorm": 1, "Linear": 2}


def test_a_table_that_is_only_looked_up_is_not_multiplied() -> None:
    from transformers import AutoModelForCausalLM, GPTNeoXConfig

    width, words, inner = 32, 100, 64
    config = GPTNeoXConfig(
        vocab_size=words, hidden_size=width, num_hidden_layers=2, num_attention_heads=2, intermediate_size=inner,
        tie_word_embeddings=False,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    layers = 2 * (4 * width * width + 2 * width * inner)
    assert base.roles(model, method("fp32")) == {
        "multiplied_weights": layers + words * width, "head_weights": words * width, "looked_up_bytes": 4 * words * width,
    }  # fmt: skip


def test_a_table_that_is_the_output_head_too_is_multiplied_and_its_positions_are_looked_up() -> None:
    from transformers import AutoModelForCausalLM, OPTConfig

    width, words, inner, places = 32, 100, 64, 50
    config = OPTConfig(
        vocab_size=words, hidden_size=width, word_embed_proj_dim=width, num_hidden_layers=2, num_attention_heads=2,
        ffn_dim=inner, max_position_embeddings=places, pad_token_id=1, bos_token_id=2, eos_token_id=2,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    layers = 2 * (4 * width * width + 2 * width * inner)
    assert base.roles(model, method("fp32")) == {
        "multiplied_weights": layers + words * width, "head_weights": words * width,
        "looked_up_bytes": 4 * (places + 2) * width,
    }  # fmt: skip
