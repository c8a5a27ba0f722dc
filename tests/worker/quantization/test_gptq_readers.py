"""One GPTQ checkpoint, several readers: the engine, GPTQModel's own loader, auto-gptq in its runtime, and a second reading of its codes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from effillm_server.contract.outcome import Phase
from effillm_server.contract.quality import Quality, QualityPlan
from effillm_worker.messages import CellRecord, Judge, Judged, Opened
from effillm_worker.quantization.spelling import rename
from tests.support.child import child_process, opening, run
from tests.support.fake_engine import cell
from tests.support.gptq import ENVIRONMENT, Answers
from tests.support.gptq_codes import dequantized, layers_of, tensors_of

pytestmark = [pytest.mark.quantization, pytest.mark.timeout(1800)]

BITS = 3
# Of the logits' spread. GPTQModel multiplies codes by scales in half precision, auto-gptq in single: a weight is off by 2^-11 at most. Of
# 3 bits only codes three from the middle are off at all, of 4 bits most are.
TOLERANCE = {3: 2e-4, 4: 2**-11}
# auto-gptq writes scales in its layer's single precision, GPTQModel rounds them as it reads, and each is off by another 2^-11 at most.
# A kernel that multiplies in bf16 is off by more than six times this.
TOLERANCE_OF_ROUNDED_SCALES = 2**-10
PLAN = QualityPlan(tokens=512)

LOGITS = """
import json, sys
import torch
from effillm_server.contract.job import Cell
from effillm_worker.engines.base import LoadRequest
from effillm_worker.engines.transformers import TransformersEngine
request = LoadRequest(cell=Cell.model_validate_json(sys.argv[1]), threads=1, device="cpu", cache_dir=sys.argv[2], model_root=sys.argv[3])
engine = TransformersEngine()
engine.start(request)
engine.load(request)
with torch.no_grad():
    print(json.dumps(engine._model(torch.arange(3, 60).unsqueeze(0)).logits[0].tolist()))
"""

BY_ITSELF = """
import json, sys
import torch
torch.set_num_threads(1)
from gptqmodel import BACKEND, GPTQModel
model = GPTQModel.load(sys.argv[1], backend=BACKEND.GPTQ_TORCH, device="cpu", dtype=torch.float16).model.eval()
layers = {name: module for name, module in model.named_modules() if hasattr(module, "qweight")}
with torch.no_grad():
    logits = model(torch.arange(3, 60).unsqueeze(0)).logits[0].tolist()
    matrices = {name: module.dequantize_weight().T.tolist() for name, module in layers.items()}
print(json.dumps({"logits": logits, "matrices": matrices, "kernels": sorted({type(m).__name__ for m in layers.values()})}))
"""


def told(interpreter: str, script: str, *arguments: str) -> str:
    """The last line that a script prints."""
    done = subprocess.run(
        [interpreter, "-c", script, *arguments], capture_output=True, text=True, check=False,
        env=os.environ | ENVIRONMENT | {"HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()[-1]


def logits(
    answers: Answers, label: str, model: str, interpreter: str = sys.executable, dtype: str = "float32"
) -> torch.Tensor:
    wanted = cell(quantization=label, model=model, weights="pretrained", dtype=dtype)
    return torch.tensor(
        json.loads(told(interpreter, LOGITS, wanted.model_dump_json(), str(answers.cache), str(answers.root)))
    )


@pytest.mark.parametrize(
    ("which", "tolerance"), [("by_gptqmodel", TOLERANCE[3]), ("by_autogptq", TOLERANCE_OF_ROUNDED_SCALES)]
)
def test_one_checkpoint_read_by_both_libraries_gives_the_same_logits(
    which: str, tolerance: float, answers: Answers, autogptq: str, request: pytest.FixtureRequest
) -> None:
    """Published under the model root, so that neither library made it for itself."""
    name = answers.publish(request.getfixturevalue(which), f"lab/{which.replace('_', '-')}")
    new = logits(answers, "gptq", name)
    old = logits(answers, "gptq", name, autogptq)
    plain = logits(answers, "fp32", "lab/trained")
    spread = float(plain.std())
    print(which, float((new - old).abs().max()) / spread)
    assert float((new - old).abs().max()) < tolerance * spread
    assert float((new - plain).abs().max()) > 10 * tolerance * spread  # 3 bits do change the logits


def test_activation_order_is_kept_by_both_libraries(answers: Answers, autogptq: str) -> None:
    made = answers.checkpoint("gptq-b4-g64-act@calibration.txt")
    tensors = tensors_of(made)
    groups = [tensors[f"{layer}.g_idx"] for layer in layers_of(tensors)]
    assert len(groups) == 8
    # Each group takes the columns that matter alike, wherever they stand.
    assert all(not group.equal(group.sort().values) for group in groups)
    assert all(group.bincount().unique().tolist() == [64] for group in groups)
    name = answers.publish(made, "lab/ordered")
    # The kernel the library chooses for 4 bits multiplies in bf16.
    new = logits(answers, "gptq-b4-g64-act-torch", name)
    old = logits(answers, "gptq", name, autogptq)
    print(float((new - old).abs().max()) / float(new.std()))
    assert float((new - old).abs().max()) < TOLERANCE[4] * float(new.std())


def test_output_and_matrices_are_those_of_gptqmodels_own_loading_path(
    answers: Answers, by_gptqmodel: Path, tmp_path: Path
) -> None:
    name = answers.publish(by_gptqmodel, "lab/by-gptqmodel")
    # Its own loader finds the output head under the name of its own transformers only, and leaves any other at zero.
    shutil.copytree(answers.root / name, tmp_path / "own")
    rename(tmp_path / "own", {"embed_out.weight": "lm_head.weight"})
    own = json.loads(told(sys.executable, BY_ITSELF, str(tmp_path / "own")))
    evidence = answers.load("gptq-b3-g64-torch", model=name).details["quantization"]
    assert list(evidence["layers"]) == own["kernels"]
    # Its own loader knows half precision only, so that is what the engine is asked for here.
    found = logits(answers, "gptq-b3-g64-torch", name, dtype="float16")
    assert torch.equal(found, torch.tensor(own["logits"]))
    tensors = tensors_of(by_gptqmodel)
    assert sorted(own["matrices"]) == layers_of(tensors)
    for layer, matrix in own["matrices"].items():
        assert torch.equal(torch.tensor(matrix), dequantized(tensors, layer, BITS, torch.float16).float())


def judged(answers: Answers, label: str, model: str, interpreter: str) -> Quality:
    wanted = cell(quantization=label, model=model, weights="pretrained")
    with child_process(interpreter=interpreter, **ENVIRONMENT) as child:
        child.say(opening(wanted, answers.cache, model_root=str(answers.root), quality=PLAN))
        child.answer(Opened)
        child.say(Judge(plan=PLAN, time_limit_s=300.0))
        return child.answer(Judged).quality


def test_a_published_checkpoint_has_a_perplexity_in_both_runtimes_and_says_why_it_has_no_agreement(
    answers: Answers, by_gptqmodel: Path, autogptq: str
) -> None:
    name = answers.publish(by_gptqmodel, "lab/by-gptqmodel")
    found = [judged(answers, "gptq", name, interpreter) for interpreter in (sys.executable, autogptq)]
    for quality in found:
        assert (quality.tokens, quality.agreement) == (512, None)
        assert quality.notes[0].startswith(
            "no agreement: the unquantized model (fp32) could not be read: the checkpoint is"
        )
        assert "stored quantized already (gptq)" in quality.notes[0]
    new, old = (quality.losses for quality in found)
    assert new is not None and old is not None
    assert new.nll == pytest.approx(old.nll, rel=1e-3)


def test_quality_in_the_old_runtime_is_compared_with_the_unquantized_model_read_there(
    answers: Answers, autogptq: str, tmp_path: Path
) -> None:
    there = Answers(answers.root, tmp_path)
    quality = judged(there, "uniform-b3-channel", "lab/trained", autogptq)
    assert quality.notes == ()
    assert quality.agreement is not None and quality.agreement.reference == "lab/trained fp32"
    assert 0.3 < quality.agreement.agreeing / quality.agreement.positions < 1


def test_what_the_old_runtime_lacks_is_named_without_an_extra_of_ours(answers: Answers, autogptq: str) -> None:
    said = answers.refusal("int8", autogptq)
    assert f"int8 needs bitsandbytes, which this runtime does not have: install it there ({autogptq} -m pip" in said


@pytest.mark.parametrize("label", ["fp32", "gptq-b4-g64"])
def test_a_cell_is_measured_in_the_old_runtime_with_nothing_of_ours_installed(
    label: str, answers: Answers, autogptq: str
) -> None:
    """Synthetic weights, its own transformers, our source tree on the path: the whole protocol of a measurement."""
    wanted = cell(quantization=label, batch_size=2, generate_tokens=3)
    with child_process(interpreter=autogptq, **ENVIRONMENT) as child:
        child.say(opening(wanted, answers.cache))
        opened = child.answer(Opened)
        child.say(run(wanted))
        record = child.answer(CellRecord)
    assert {len(sample.timestamps_ns) for sample in record.samples if sample.phase is Phase.MEASURED} == {4}
    assert opened.software.versions["transformers"] == "4.46.3"
    if label != "fp32":
        assert opened.model.details["quantization"]["facts"]["library"] == "auto-gptq 0.7.1"
        assert list(opened.model.details["quantization"]["layers"]) == ["QuantLinear"]
