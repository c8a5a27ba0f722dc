from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch

from effillm_server.catalog import load
from effillm_worker.engines.base import Unsupported
from effillm_worker.messages import Opened
from effillm_worker.quantization import training
from effillm_worker.quantization.training import Recipe, SimulatedLinear
from tests.support.child import child_process, opening
from tests.support.conversion import Bed, one_thread
from tests.support.fake_engine import cell

QUICK = "qat-b2-n8-lr0.0002@calibration.txt"


@pytest.fixture(scope="module")
def bed(tmp_path_factory: pytest.TempPathFactory) -> Bed:
    return Bed.make(tmp_path_factory.mktemp("qat"))


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    with one_thread():
        yield


def test_gradient_passes_straight_through_the_rounding() -> None:
    layer = SimulatedLinear(torch.nn.Linear(8, 4), 3)
    inputs = torch.randn(5, 8, generator=torch.Generator().manual_seed(1))
    layer(inputs).sum().backward()
    torch.testing.assert_close(layer.weight.grad, inputs.sum(dim=0).expand(4, 8))


def test_simulated_layer_multiplies_what_its_codes_stand_for_and_as_teacher_what_was_there() -> None:
    from effillm_worker.quantization.codes import UniformLinear

    plain = torch.nn.Linear(16, 8)
    layer, coded = SimulatedLinear(plain, 3), UniformLinear(plain.weight, plain.bias, 3, channel=True)
    inputs = torch.randn(5, 16, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(layer(inputs), coded(inputs))
    layer.is_teacher = True
    torch.testing.assert_close(layer(inputs), plain(inputs))


def test_training_is_recorded_lowers_its_loss_and_is_kept(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    model, said = bed.convert(QUICK)
    told = said["facts"]["training"]
    assert (told["steps"], told["learning_rate"], told["bits"], told["text"]) == (8, 0.0002, 2, "calibration.txt")
    course = told["unseen_losses"]
    assert len(course) == 9
    assert course[-1] < course[0]
    assert course[told["kept_after_step"]] == min(course)
    assert {module.bits for module in model.modules() if hasattr(module, "bits")} == {2}

    def again(*_: object) -> None:
        raise AssertionError("trained twice")

    monkeypatch.setattr(training, "train", again)
    other, _ = bed.convert(QUICK)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))


def test_training_leaves_the_model_as_it_was(bed: Bed) -> None:
    model, untouched = bed.load(), bed.load()
    ids = bed.encode([(bed.root / "calibration.txt").read_text()])[0]
    training.train(model, ids, Recipe(2, 2, 0.0002), 256)
    assert [name for name, _ in model.named_modules()] == [name for name, _ in untouched.named_modules()]
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), untouched.parameters(), strict=True))
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_training_that_diverges_says_so_and_keeps_nothing(bed: Bed) -> None:
    with pytest.raises(Unsupported, match=r"qat diverged: its loss .* learning rate 10: set a smaller learning_rate"):
        bed.convert("qat-b4-n4-lr10@calibration.txt")
    kept = [
        json.loads(path.read_text())["learning_rate"] for path in (bed.root / "cache" / "qat").glob("*/training.json")
    ]
    assert 10 not in kept


def test_a_loss_that_is_no_number_is_a_divergence_at_the_step_it_comes(bed: Bed) -> None:
    ids = bed.encode([(bed.root / "calibration.txt").read_text()])[0]
    with pytest.raises(
        Unsupported,
        match=r"its loss was not finite at step 2 of 4 at learning rate 1e\+30: set a smaller learning_rate",
    ):
        training.train(bed.load(), ids, Recipe(4, 4, 1e30), 256)


def test_each_step_of_a_training_is_told(bed: Bed) -> None:
    ids = bed.encode([(bed.root / "calibration.txt").read_text()])[0]
    told: list[tuple[int, int]] = []
    training.train(bed.load(), ids, Recipe(4, 3, 0.0001), 256, lambda *step: told.append(step))
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_training_that_only_harms_a_little_keeps_what_it_began_with(bed: Bed) -> None:
    ids = bed.encode([(bed.root / "calibration.txt").read_text()])[0]
    _, told = training.train(bed.load(), ids, Recipe(8, 2, 0.0002), 256)
    assert told["unseen_losses"][0] < min(told["unseen_losses"][1:])
    assert told["kept_after_step"] == 0


def test_text_that_is_too_short_to_train_on_says_how_long_it_must_be(bed: Bed) -> None:
    (bed.root / "short.txt").write_text("A word or two.")
    with pytest.raises(Unsupported, match=r"'short\.txt' has \d+ tokens, qat needs 512"):
        bed.convert("qat-b4@short.txt")


@pytest.mark.quantization
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("text", ["@calibration.txt", ""], ids=["own text", "shipped text"])
def test_qat_beats_post_training_quantization_at_3_bits_on_held_out_text(tmp_path: Path, text: str) -> None:
    won = 0
    for seed in range(3):
        bed = Bed.make(tmp_path / str(seed), "full", seed)
        rounded, _ = bed.convert("uniform-b3-channel")
        tuned, _ = bed.convert(f"qat-b3{text}")
        print(seed, bed.nll(bed.load()), bed.nll(rounded), bed.nll(tuned))
        won += bed.nll(tuned) < bed.nll(rounded)
    assert won >= 2


@pytest.mark.quantization
@pytest.mark.timeout(600)
def test_a_model_that_was_trained_here_holds_the_memory_of_one_whose_training_was_found(tmp_path: Path) -> None:
    """And that of the codes alone: what training took is the kernel's again before anything is measured."""
    held = {}
    for label in ("uniform-b4-channel", "qat-b4-n2", "qat-b4-n2 again"):
        of = cell(model="EleutherAI/pythia-70m", quantization=label.removesuffix(" again"))
        with child_process() as child:
            child.say(opening(of, tmp_path, architecture=load().models[of.model].architecture))
            child.answer(Opened)
            held[label] = psutil.Process(child.process.pid).memory_info().rss
    print({label: f"{size / 1e6:.0f} MB" for label, size in held.items()})
    assert max(held.values()) < 1.05 * min(held.values())
