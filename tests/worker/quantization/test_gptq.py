"""GPTQ by GPTQModel, and by auto-gptq in a runtime of its own: slow, so behind the marker `quantization`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from effillm_server import runtimes
from effillm_server.contract.outcome import Phase
from effillm_worker.messages import CellRecord, Opened, Refused
from tests.support import trained
from tests.support.child import REPOSITORY, child_process, opening, run
from tests.support.fake_engine import cell

pytestmark = [pytest.mark.quantization, pytest.mark.timeout(1800)]

BITS, GROUP = 3, 64
LABEL = f"gptq-b{BITS}-g{GROUP}"
# Of the logits' spread. A scale rounded to half precision is off by 2^-11 at most, and the libraries need not keep scales alike; a
# kernel that multiplies in bf16 is off by more than six times this.
TOLERANCE = 2**-10


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model root with the trained model and a calibration text of its kind."""
    folder = tmp_path_factory.mktemp("root")
    shutil.copytree(trained.folder("quick"), folder / "lab" / "trained")
    (folder / "calibration.txt").write_text(trained.stories.stories(2 * trained.HELD_OUT, 200))
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def autogptq() -> str:
    """Interpreter of the runtime `autogptq`, built once by the command a user types and kept between runs."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "effillm-tests" / "runtimes"
    home.mkdir(parents=True, exist_ok=True)
    if "autogptq" not in runtimes.registered(home):
        done = subprocess.run(
            [sys.executable, "-m", "effillm_server.cli", "runtime", "create", "autogptq"],
            env=os.environ | {"EFFILLM_DATA_DIR": str(home)}, check=False, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
    return runtimes.registered(home)["autogptq"]


class Answers:
    """What loading told: the model's record, or why not."""

    def __init__(self, root: Path, cache: Path) -> None:
        self.root, self.cache = root, cache

    def open(self, label: str, interpreter: str = sys.executable, **changes: Any) -> Any:
        values = {"model": "lab/trained", "weights": "pretrained"} | changes
        with child_process(interpreter=interpreter, **ENVIRONMENT) as child:
            child.say(opening(cell(quantization=label, **values), self.cache, model_root=str(self.root)))
            return child.answer((Opened, Refused))

    def load(self, label: str, interpreter: str = sys.executable, **changes: Any) -> Any:
        answer = self.open(label, interpreter, **changes)
        assert isinstance(answer, Opened), answer
        return answer.model

    def refusal(self, label: str, interpreter: str = sys.executable, **changes: Any) -> str:
        answer = self.open(label, interpreter, **changes)
        assert isinstance(answer, Refused), answer
        return answer.message

    def made(self) -> set[Path]:
        return {path for path in (self.cache / "gptq").glob("*") if not path.name.startswith((".", "named-"))}


ENVIRONMENT = {"PYTHONPATH": str(REPOSITORY), "PYTHONSAFEPATH": "1"}


@pytest.fixture(scope="module")
def answers(root: Path, cache: Path) -> Iterator[Answers]:
    yield Answers(root, cache)


def checkpoint(answers: Answers, label: str, interpreter: str = sys.executable) -> Path:
    """The folder a label's checkpoint is made into, made now if it is not there."""
    before = answers.made()
    answers.load(label, interpreter)
    (folder,) = answers.made() - before
    return folder


@pytest.fixture(scope="module")
def by_gptqmodel(answers: Answers) -> Path:
    return checkpoint(answers, f"{LABEL}@calibration.txt")


@pytest.fixture(scope="module")
def by_autogptq(answers: Answers, autogptq: str) -> Path:
    return checkpoint(answers, f"{LABEL}@calibration.txt", autogptq)


ERRORS = """
import json, sys
from pathlib import Path
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from safetensors.torch import load_file

root, folder, bits, group = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
tensors = {}
for path in folder.glob("*.safetensors"):
    tensors |= load_file(str(path))

def numbers(packed, across):
    \"\"\"Codes of `bits` bits out of 32-bit words, packed along the dimension `across`.\"\"\"
    words = packed.to(torch.int64) & 0xFFFFFFFF
    words = words if across == 0 else words.T
    lanes = ((words.unsqueeze(1) >> torch.arange(32).reshape(1, 32, 1)) & 1).reshape(-1, words.shape[1])
    codes = (lanes.reshape(-1, bits, words.shape[1]) * (2 ** torch.arange(bits)).reshape(1, bits, 1)).sum(1)
    return codes if across == 0 else codes.T

def dequantized(name):
    codes = numbers(tensors[name + ".qweight"], 0)
    zeros = numbers(tensors[name + ".qzeros"], 1) + 1
    scales, index = tensors[name + ".scales"].float(), tensors[name + ".g_idx"].long()
    return ((codes - (zeros & (2**bits - 1))[index]) * scales[index]).T

def nearest(weight):
    rows = weight.reshape(weight.shape[0], -1, group)
    top = rows.abs().amax(-1, keepdim=True)
    scale = 2 * top / (2**bits - 1)
    middle = 2 ** (bits - 1)
    return ((torch.clamp(torch.round(rows / scale) + middle, 0, 2**bits - 1) - middle) * scale).reshape(weight.shape)

source = root / "lab" / "trained"
model = AutoModelForCausalLM.from_pretrained(source).float().eval()
ids = AutoTokenizer.from_pretrained(source)((root / "calibration.txt").read_text())["input_ids"][:4096]
inputs = {}
layers = {n: m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and "layers" in n}
hooks = [m.register_forward_hook(lambda m, i, o, n=n: inputs.update({n: i[0].flatten(0, 1)})) for n, m in layers.items()]
with torch.no_grad():
    model(torch.tensor([ids[:4096]]).reshape(-1, 128))
    errors = {
        n: [float(((w - m.weight) @ inputs[n].T).norm() / (m.weight @ inputs[n].T).norm()) for w in (dequantized(n), nearest(m.weight))]
        for n, m in layers.items()
    }
print(json.dumps(errors))
"""


@pytest.mark.parametrize("which", ["by_gptqmodel", "by_autogptq"])
def test_layer_outputs_on_calibration_text_are_nearer_than_by_rounding_to_nearest(
    which: str, root: Path, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(which)
    done = subprocess.run(
        [sys.executable, "-c", ERRORS, str(root), str(folder), str(BITS), str(GROUP)], capture_output=True, text=True, check=False
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    errors = json.loads(done.stdout.splitlines()[-1])
    assert len(errors) == 8
    first = {name: pair for name, pair in errors.items() if ".0." in name}
    # Layers behind the first are quantized for inputs that quantized layers before them made; these are the plain model's.
    assert all(gptq < nearest for gptq, nearest in first.values()), errors
    assert sum(gptq for gptq, _ in errors.values()) < 0.9 * sum(nearest for _, nearest in errors.values()), errors


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


def logits(answers: Answers, label: str, model: str, interpreter: str) -> torch.Tensor:
    wanted = cell(quantization=label, model=model, weights="pretrained")
    done = subprocess.run(
        [interpreter, "-c", LOGITS, wanted.model_dump_json(), str(answers.cache), str(answers.root)], capture_output=True,
        text=True, check=False, env=os.environ | ENVIRONMENT | {"HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.tensor(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("which", ["by_gptqmodel", "by_autogptq"])
def test_one_checkpoint_read_by_both_libraries_gives_the_same_logits(
    which: str, answers: Answers, autogptq: str, request: pytest.FixtureRequest
) -> None:
    """Published under the model root, so that neither library made it for itself."""
    name = f"lab/{which.replace('_', '-')}"
    target = answers.root / name
    if not target.exists():
        shutil.copytree(request.getfixturevalue(which), target)
        (target / "effillm.json").unlink()
    new = logits(answers, "gptq", name, sys.executable)
    old = logits(answers, "gptq", name, autogptq)
    plain = logits(answers, "fp32", "lab/trained", sys.executable)
    spread = float(plain.std())
    assert float((new - old).abs().max()) < TOLERANCE * spread
    assert float((new - plain).abs().max()) > 10 * TOLERANCE * spread  # 3 bits do change the logits


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


def test_activation_order_is_kept_by_both_libraries(answers: Answers, autogptq: str) -> None:
    name = "lab/ordered"
    if not (answers.root / name).exists():
        shutil.copytree(checkpoint(answers, "gptq-b4-g64-act@calibration.txt"), answers.root / name)
    # The kernel the library chooses for 4 bits multiplies in bf16.
    new = logits(answers, "gptq-b4-g64-act-torch", name, sys.executable)
    old = logits(answers, "gptq", name, autogptq)
    assert float((new - old).abs().max()) < TOLERANCE * float(new.std())


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
