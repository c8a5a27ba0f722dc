"""Methods on a real model by the engine: what the library itself would load, memory as predicted, evidence that adds up."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from effillm_worker.engines.base import LoadRequest, Unsupported
from effillm_worker.engines.transformers import TransformersEngine
from tests.support.fake_engine import cell
from tests.support.loading import (
    ARCHITECTURE,
    LAYERS,
    LINEAR,
    MATRICES,
    REST,
    ROWS,
    WIDTH,
    WORDS,
    folder,
    load,
    logits,
    own_path,
)


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    threads = torch.get_num_threads()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    torch.set_num_threads(threads)
    logging.getLogger("bitsandbytes").setLevel(logging.NOTSET)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


BLOCKS = LINEAR // 64
PREDICTED = {
    "fp32": 4 * LINEAR,
    "bf16": 2 * LINEAR,
    "int8": LINEAR + 4 * ROWS,
    "int4": LINEAR // 2 + 4 * BLOCKS,
    "int4-fp4": LINEAR // 2 + 4 * BLOCKS,
    "int4-nf4-double": LINEAR // 2 + BLOCKS + 4 * BLOCKS // 256,
    "uniform-b4": LINEAR // 2,
    "uniform-b3-channel": 3 * LINEAR // 8 + 8 * ROWS,
    "qat-b3-n2": 3 * LINEAR // 8 + 8 * ROWS,
}


@pytest.mark.parametrize("label", PREDICTED)
def test_stored_bytes_are_within_three_per_cent_of_the_predicted(cache: Path, label: str) -> None:
    is_half = label == "bf16"
    _, found, evidence = load(cache, label, dtype="bfloat16" if is_half else "float32")
    # Double quantization keeps a code book of 1 KiB per matrix, which only so small a model notices.
    books = len(MATRICES) * 1100 if label.endswith("double") else len(MATRICES) * 64 if label.startswith("int4") else 0
    rest = REST // 2 if is_half else REST
    assert found.weight_bytes == pytest.approx(PREDICTED[label] + rest + books, rel=0.03)
    assert found.parameters == LINEAR + REST // 4
    assert found.bits_per_weight == pytest.approx(8 * found.weight_bytes / found.parameters)
    assert evidence.quantized_weights == (0 if label in ("fp32", "bf16") else LINEAR)
    assert found.details["multiplied_weights"] == LINEAR + WORDS * WIDTH


@pytest.mark.parametrize(
    ("label", "kernel", "bits"),
    [("int8-t4", "Linear8bitLt", 8), ("int4-fp4", "Linear4bit", 4), ("uniform-b3-channel", "UniformLinear", 3)],
)
def test_evidence_names_the_layers_their_kernel_and_what_it_took(
    cache: Path, label: str, kernel: str, bits: int
) -> None:
    _, found, evidence = load(cache, label)
    assert evidence.layers == {kernel: 4 * LAYERS}
    assert found.kernels[kernel] == 4 * LAYERS
    assert evidence.modules == {
        f"gpt_neox.layers.*.{name}": LAYERS
        for name in ("attention.query_key_value", "attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h")
    }
    assert list(evidence.kept.values()) == [1]  # the output head
    assert (evidence.method, evidence.theoretical_bits) == (label, bits)
    assert evidence.seconds is not None and 0 < evidence.seconds < 60
    assert evidence.disk_bytes == sum(path.stat().st_size for path in folder(cache).glob("*.safetensors"))


@pytest.mark.parametrize(
    ("label", "settings"),
    [
        ("int8-t0.5", {"load_in_8bit": True, "llm_int8_threshold": 0.5}),
        ("int4", {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}),
        ("int4-fp4", {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"}),
        (
            "int4-nf4-double",
            {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
        ),
    ],
)
def test_output_is_that_of_the_librarys_own_loading_path(cache: Path, label: str, settings: dict[str, Any]) -> None:
    from transformers import BitsAndBytesConfig

    model, _, _ = load(cache, label)
    expected = own_path(cache, quantization_config=BitsAndBytesConfig(**settings, bnb_4bit_compute_dtype="float32"))
    assert torch.equal(logits(model), expected)
    assert not torch.equal(expected, own_path(cache))


def test_bf16_output_is_that_of_transformers_own_loading_path(cache: Path) -> None:
    model, found, _ = load(cache, "bf16", dtype="bfloat16")
    expected = own_path(cache, torch.bfloat16)
    assert expected.dtype is torch.bfloat16
    assert torch.equal(logits(model), expected)
    assert (found.dtype, found.bits_per_weight) == ("bfloat16", 16)


def test_int4_says_the_type_that_its_kernel_brings_its_inputs_to(cache: Path) -> None:
    model, found, _ = load(cache, "int4")
    layer = next(module for module in model.modules() if type(module).__name__ == "Linear4bit")
    inputs = torch.randn(3, layer.in_features)
    with torch.no_grad():
        exact, rounded = layer(inputs), layer(inputs.bfloat16().float())
    assert found.details["multiplied_in"] == ("bfloat16" if torch.equal(exact, rounded) else "float32")


@pytest.mark.parametrize(("label", "dtype"), [("fp32", "float32"), ("int8", "int8"), ("uniform-b4", "float32")])
def test_the_type_of_the_products_is_told(cache: Path, label: str, dtype: str) -> None:
    assert load(cache, label)[1].details["multiplied_in"] == dtype


def test_threshold_decides_what_is_multiplied_unquantized(cache: Path) -> None:
    plain = own_path(cache)
    errors = {label: float((logits(load(cache, label)[0]) - plain).norm()) for label in ("int8-t0.5", "int8-t1000")}
    assert errors["int8-t0.5"] < errors["int8-t1000"]


def test_uniform_output_is_that_of_the_weights_its_codes_stand_for(cache: Path) -> None:
    from transformers import AutoModelForCausalLM

    from effillm_worker.quantization.codes import dequantize, quantize

    model, _, _ = load(cache, "uniform-b5-channel")
    plain = AutoModelForCausalLM.from_pretrained(folder(cache), dtype=torch.float32).eval()
    with torch.no_grad():
        for name, module in plain.named_modules():
            if isinstance(module, torch.nn.Linear) and "layers" in name:
                module.weight.copy_(dequantize(*quantize(module.weight, 5, channel=True), torch.float32))
    assert torch.allclose(logits(model), logits(plain), atol=1e-6)


def test_qat_output_is_that_of_the_codes_of_its_trained_matrices(tmp_path: Path) -> None:
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    from effillm_worker.quantization.codes import dequantize, quantize

    model, _, _ = load(tmp_path, "qat-b4-n2")
    (kept,) = (tmp_path / "qat").glob("*/matrices.safetensors")
    matrices = load_file(str(kept))
    plain = AutoModelForCausalLM.from_pretrained(folder(tmp_path), dtype=torch.float32).eval()
    with torch.no_grad():
        for name, matrix in matrices.items():
            weight = plain.get_submodule(name).weight
            assert matrix.shape == weight.shape
            weight.copy_(dequantize(*quantize(matrix, 4, channel=True), torch.float32))
    assert len(matrices) == 4 * LAYERS
    assert torch.allclose(logits(model), logits(plain), atol=1e-6)


def test_a_checkpoint_that_is_stored_quantized_is_not_measured_under_another_name(tmp_path: Path) -> None:
    from transformers import GPTNeoXConfig

    config = GPTNeoXConfig(**{key: value for key, value in ARCHITECTURE.items() if key != "model_type"})
    config.quantization_config = {"quant_method": "gptq", "bits": 4, "group_size": 128}
    packed = tmp_path / "models" / "lab" / "packed"
    config.save_pretrained(packed)
    (packed / "model.safetensors").write_bytes(b"")
    request = LoadRequest(
        cell=cell(model="lab/packed", weights="pretrained"), threads=1, device="cpu", cache_dir=str(tmp_path),
        model_root=str(tmp_path / "models"),
    )  # fmt: skip
    with pytest.raises(Unsupported, match=r"stored quantized already \(gptq\), so fp32 would not be what is measured"):
        TransformersEngine().start(request)
