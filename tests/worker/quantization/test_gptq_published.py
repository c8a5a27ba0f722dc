"""What a published checkpoint says of itself, against what a label asks for; no GPTQ library takes part."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from effillm_server.contract.outcome import InfeasibleReason
from effillm_worker.engines.base import Unsupported
from effillm_worker.measure.refusal import answer
from effillm_worker.quantization import gptq, gptq_kernels, method
from effillm_worker.quantization.base import Conversion
from effillm_worker.quantization.gptq import published
from effillm_worker.weights import Source

SETTINGS = {"quant_method": "gptq", "bits": 3, "group_size": 64, "desc_act": True}


def config(**settings: Any) -> Any:
    return SimpleNamespace(quantization_config=settings) if settings else SimpleNamespace()


def test_settings_are_read_from_the_config_or_from_the_file_beside_it(tmp_path: Path) -> None:
    source = Source(str(tmp_path))
    assert published(config(), source) is None
    (tmp_path / "quantize_config.json").write_text(json.dumps({"bits": 8, "group_size": 32}))
    assert published(config(), source) == {"bits": 8, "group_size": 32}
    assert published(config(**SETTINGS), source) == SETTINGS


@pytest.mark.parametrize("label", ["gptq", "gptq-b3-g64-act"])
def test_a_checkpoint_that_is_what_the_label_asks_for_is_taken_with_the_labels_kernel(label: str) -> None:
    found = config(**SETTINGS)
    method(label).accept(found, Source("/nowhere"))
    assert found.quantization_config == SETTINGS
    method("gptq-b3-g64-act-torch").accept(found, Source("/nowhere"))
    assert found.quantization_config == SETTINGS | {"backend": "gptq_torch"}


@pytest.mark.parametrize(
    ("label", "sentence"),
    [
        ("gptq-b4-g64-act", "has bits 3 where gptq-b4-g64-act asks for bits 4: plain gptq takes it as it is"),
        (
            "gptq-b3-g128",
            "has group_size 64, act_order True where gptq-b3-g128 asks for group_size 128, act_order False",
        ),
    ],
)
def test_a_checkpoint_of_other_settings_is_not_measured_under_the_label(label: str, sentence: str) -> None:
    with pytest.raises(Unsupported, match=sentence):
        method(label).accept(config(**SETTINGS), Source("/nowhere"))


def test_bits_in_theory_are_those_of_the_published_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gptq, "library", lambda: "auto_gptq")
    monkeypatch.setattr(gptq, "version", lambda _: "0.7.1")
    made = method("gptq")
    made.check("cpu", "float32")
    assert made.theoretical_bits == 4
    made.accept(config(**SETTINGS), Source("/nowhere"))
    assert made.evidence(None)["theoretical_bits"] == 3


@pytest.mark.parametrize("ending", ["kill -9 $$", 'echo "cannot allocate memory" >&2; exit 1', "exit 7"])
def test_quantizing_that_the_kernel_ends_is_out_of_memory(
    ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interpreter = tmp_path / "python"
    interpreter.write_text(f"#!/bin/sh\n{ending}\n")
    interpreter.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(interpreter))
    context = Conversion(
        label="gptq", device="cpu", dtype="float32", cache_dir=tmp_path, model_root=None, source=Source("/nowhere"), identity="w",
        encode=lambda _: [],
    )  # fmt: skip
    with pytest.raises(Exception, match=r"quantizing by GPTQModel") as raised:
        gptq._make(context, "gptqmodel", {}, [[1, 2]], tmp_path, {})
    found = answer(raised.value)
    if ending == "exit 7":
        assert isinstance(raised.value, gptq.GptqFailed) and found is None  # a fault, tried again
    else:
        assert found is not None and found[0] is InfeasibleReason.OUT_OF_HOST_MEMORY
    if ending.startswith("kill"):
        assert "ended by SIGKILL, as the kernel does when memory runs out" in str(raised.value)


def test_a_checkpoint_quantized_otherwise_is_not_gptq() -> None:
    with pytest.raises(Unsupported, match="stored quantized by awq, not by GPTQ"):
        method("gptq").accept(config(quant_method="awq", bits=4), Source("/nowhere"))


@pytest.mark.parametrize(
    ("settings", "kernel", "sentence"),
    [
        ({"checkpoint_format": "marlin"}, "auto", "marlin kernel, which auto-gptq has for GPUs only"),
        ({"checkpoint_format": "gptq_v2"}, "auto", "which auto-gptq would misread"),
        ({}, "torch", "auto-gptq chooses its kernel itself"),
    ],
)
def test_what_auto_gptq_has_no_kernel_for_is_refused_before_it_is_loaded(
    settings: dict[str, Any], kernel: str, sentence: str
) -> None:
    with pytest.raises(Unsupported, match=sentence):
        gptq_kernels.choose("auto_gptq", settings, kernel, "cpu")


def test_a_librarys_refusal_is_an_answer_and_memory_that_runs_out_is_not() -> None:
    said = "no kernel of this runtime runs gptq on this device: Unsupported bits 5"
    with pytest.raises(Unsupported, match=said), gptq_kernels.reasons("gptq"):
        raise NotImplementedError("Unsupported bits\n 5")
    with pytest.raises(RuntimeError, match="out of memory"), gptq_kernels.reasons("gptq"):
        raise RuntimeError("CUDA out of memory")
