"""GPTQ by GPTQModel, and by auto-gptq in a runtime of its own: slow, so behind the marker `quantization`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from effillm_worker.messages import Progress
from tests.support import trained
from tests.support.gptq import Answers
from tests.support.gptq_codes import codes, layers_of, output_errors, tensors_of

pytestmark = [pytest.mark.quantization, pytest.mark.timeout(1800)]

BITS, GROUP = 3, 64
LABEL = f"gptq-b{BITS}-g{GROUP}"


def trained_model(root: Path) -> tuple[Any, list[int]]:
    """The unquantized model, and 4,096 tokens of the calibration text."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = root / "lab" / "trained"
    text = (root / "calibration.txt").read_text()
    ids = AutoTokenizer.from_pretrained(source)(text, verbose=False)["input_ids"][:4096]
    return AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval(), list(ids)


@pytest.mark.parametrize("which", ["by_gptqmodel", "by_autogptq"])
def test_layer_outputs_on_calibration_text_are_nearer_than_by_rounding_to_nearest(
    which: str, answers: Answers, request: pytest.FixtureRequest
) -> None:
    model, ids = trained_model(answers.root)
    errors = output_errors(model, ids, tensors_of(request.getfixturevalue(which)), BITS, GROUP)
    assert len(errors) == 8
    first = {name: pair for name, pair in errors.items() if ".0." in name}
    # Layers behind the first are quantized for inputs that quantized layers before them made; these are the plain model's.
    assert all(gptq < nearest for gptq, nearest in first.values()), errors
    assert sum(gptq for gptq, _ in errors.values()) < 0.9 * sum(nearest for _, nearest in errors.values()), errors


@pytest.mark.parametrize("which", ["by_gptqmodel", "by_autogptq"])
def test_codes_use_the_whole_grid_and_columns_are_grouped_in_order(which: str, request: pytest.FixtureRequest) -> None:
    tensors = tensors_of(request.getfixturevalue(which))
    for layer in layers_of(tensors):
        found = codes(tensors, layer, BITS)
        assert (int(found.min()), int(found.max())) == (0, 2**BITS - 1)
        group = tensors[f"{layer}.g_idx"]
        assert group.equal(torch.arange(len(group), dtype=group.dtype) // GROUP)


def test_bits_are_counted_and_the_kernel_named(answers: Answers, by_gptqmodel: Path) -> None:
    model = answers.load(f"{LABEL}@calibration.txt")
    evidence = model.details["quantization"]
    (kernel,) = evidence["layers"]
    assert evidence["layers"][kernel] == 8
    assert (evidence["theoretical_bits"], evidence["facts"]["bits"], evidence["facts"]["group_size"]) == (
        BITS,
        BITS,
        GROUP,
    )
    assert evidence["facts"]["library"].startswith("GPTQModel 7.6.0")
    assert evidence["facts"]["calibration"]["text"] == "calibration.txt"
    assert evidence["seconds"] > 0
    assert evidence["disk_bytes"] == sum(path.stat().st_size for path in by_gptqmodel.glob("*.safetensors"))
    width, inner, words = 128, 512, trained.VOCABULARY
    linear = 2 * (4 * width * width + 2 * width * inner)
    assert evidence["quantized_weights"] == linear
    # Codes, a scale and a packed zero point per group of a row, a group number per column, the rest in single precision.
    groups = linear // GROUP
    columns = 2 * (3 * width + inner)
    biases = 2 * (5 * width + inner)
    predicted = (
        linear * BITS / 8 + groups * (4 + BITS / 8) + 4 * columns + 4 * (biases + 2 * words * width + 10 * width)
    )
    assert model.weight_bytes == pytest.approx(predicted, rel=0.03)


def test_a_checkpoint_is_made_once(answers: Answers, by_gptqmodel: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in by_gptqmodel.iterdir()}
    made = answers.made()
    answers.load(f"{LABEL}@calibration.txt")
    assert {path: path.stat().st_mtime_ns for path in by_gptqmodel.iterdir()} == before
    assert answers.made() == made


def test_a_published_checkpoint_with_its_settings_beside_it_is_read(answers: Answers, by_gptqmodel: Path) -> None:
    """As auto-gptq published them: `quantize_config.json`, nothing in the model's own config."""
    target = answers.root / "lab" / "beside"
    shutil.copytree(by_gptqmodel, target)
    config = json.loads((target / "config.json").read_text())
    del config["quantization_config"]
    (target / "config.json").write_text(json.dumps(config))
    (target / "effillm.json").unlink()
    model = answers.load("gptq", model="lab/beside")
    facts = model.details["quantization"]["facts"]
    assert (facts["made"], facts["bits"], facts["group_size"]) == ("published", BITS, GROUP)
    assert model.details["quantization"]["theoretical_bits"] == BITS  # plain gptq would be 4


def test_a_published_checkpoint_of_other_settings_is_refused(answers: Answers, by_gptqmodel: Path) -> None:
    target = answers.root / "lab" / "other"
    shutil.copytree(by_gptqmodel, target)
    said = answers.refusal("gptq-b4-g64", model="lab/other")
    assert "the published checkpoint has bits 3 where gptq-b4-g64 asks for bits 4" in said


def test_a_layout_no_kernel_here_runs_is_refused(answers: Answers, by_gptqmodel: Path) -> None:
    target = answers.root / "lab" / "marlin"
    shutil.copytree(by_gptqmodel, target)
    for name in ("config.json", "quantize_config.json"):
        read = json.loads((target / name).read_text())
        settings = read.get("quantization_config", read)
        settings |= {"checkpoint_format": "marlin", "format": "marlin"}
        (target / name).write_text(json.dumps(read))
    said = answers.refusal("gptq", model="lab/marlin")
    assert "no kernel of this runtime runs gptq on this device" in said


def test_calibration_text_that_is_too_short_is_refused(answers: Answers) -> None:
    (answers.root / "short.txt").write_text("Once upon a time. " * 20)
    said = answers.refusal("gptq-b4-g128@short.txt")
    assert "gptq needs at least 1,024: use a longer text" in said


def test_synthetic_weights_are_quantized_too(answers: Answers) -> None:
    model = answers.load("gptq-b4-g64", weights="synthetic", model="lab/tiny")
    assert model.details["quantization"]["quantized_weights"] == 2 * (4 * 64 * 64 + 2 * 64 * 256)
    assert model.bits_per_weight < 32
    steps = [report for report in answers.heard if isinstance(report, Progress)]
    assert steps and {step.phase for step in steps} == {"quantizing"}  # it takes longer than one look
