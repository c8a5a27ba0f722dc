"""Quality through the engine, as the child measures it, on a model the tests train."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from effillm_server.contract.quality import Quality, QualityPlan
from effillm_worker.engines.base import LoadRequest
from effillm_worker.engines.transformers import TransformersEngine
from effillm_worker.quality import reference
from tests.support import trained
from tests.support.fake_engine import cell

PLAN = QualityPlan(text="held-out.txt", tokens=2048)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model root with the trained model and a text it has not seen."""
    made = tmp_path_factory.mktemp("models")
    model = made / "lab" / "trained"
    model.mkdir(parents=True)
    for file in trained.folder("quick").iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    (made / "held-out.txt").write_text(trained.held_out(60))
    (made / "short.txt").write_text("Only a few words.")
    return made


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def judged(root: Path, cache: Path, quantization: str = "fp32", plan: QualityPlan = PLAN, **changes: Any) -> Quality:
    values: dict[str, Any] = {"model": "lab/trained", "weights": "pretrained", "quantization": quantization} | changes
    request = LoadRequest(
        cell=cell(**values), threads=2, device="cpu", cache_dir=str(cache), model_root=str(root)
    )  # fmt: skip
    engine = TransformersEngine()
    engine.start(request)
    engine.prepare_judging(plan)
    engine.load(request)
    found = engine.judge(plan, 600.0)
    engine.unload()
    return found


def test_the_unquantized_model_agrees_with_itself_and_is_kept_for_the_others(root: Path, cache: Path) -> None:
    found = judged(root, cache)
    assert found.notes == ()
    assert (found.tokens, found.window, found.stride) == (2048, 256, 128)
    assert found.losses is not None and found.agreement is not None
    assert found.agreement.losses == found.losses
    assert (found.agreement.agreeing, found.agreement.mean_kl < 1e-5) == (2048, True)
    assert found.agreement.reference == "lab/trained fp32"
    assert len(list((cache / "quality").glob("*/reference.json"))) == 1
    assert found.shares is None


@pytest.mark.quantization
def test_a_quantized_model_is_compared_with_the_unquantized_one_that_a_process_of_its_own_has_read(
    root: Path, tmp_path: Path
) -> None:
    found = judged(root, tmp_path, "uniform-b3-channel")
    assert found.notes == ()
    assert found.agreement is not None and found.losses is not None
    assert 0.5 < found.agreement.agreeing / found.agreement.positions < 1
    assert found.agreement.mean_kl > 0.001
    assert mean(found.losses) > mean(found.agreement.losses)
    assert mean(found.agreement.losses) == pytest.approx(mean(judged(root, tmp_path).losses), rel=1e-6)
    assert found.shares is not None
    assert 0 < found.shares.decode_dequantization < 1


def mean(losses: Any) -> float:
    return sum(nll * tokens for nll, tokens in zip(losses.nll, losses.tokens, strict=True)) / sum(losses.tokens)


def test_the_shipped_text_is_read_when_none_is_named(root: Path, cache: Path) -> None:
    found = judged(root, cache, plan=QualityPlan(tokens=512, agreement=False))
    assert (found.text, found.tokens, found.agreement) == ("shipped", 512, None)


@pytest.mark.quantization
def test_synthetic_weights_have_no_quality_and_say_so(root: Path, tmp_path: Path) -> None:
    found = judged(root, tmp_path, weights="synthetic")
    assert found.losses is None
    assert found.notes == ("synthetic weights are random and have no quality: measure it with weights: pretrained",)
    assert found.shares is None
    assert not (tmp_path / "quality").exists()


@pytest.mark.quantization
def test_where_the_time_of_quantized_synthetic_weights_goes_is_told_although_they_have_no_quality(
    root: Path, tmp_path: Path
) -> None:
    found = judged(root, tmp_path, "uniform-b4-channel", weights="synthetic")
    assert found.losses is None and found.agreement is None
    assert found.notes == ("synthetic weights are random and have no quality: measure it with weights: pretrained",)
    assert found.shares is not None
    assert 0 < found.shares.decode_dequantization < 1
    assert found.shares.prompt_tokens == 128 and found.shares.decode_operations


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("short.txt", r"'short.txt' has \d+ tokens, quality needs more than 256"),
        ("no.txt", "there is no text 'no.txt'"),
    ],
)
def test_a_text_that_will_not_do_is_said_in_words(root: Path, cache: Path, text: str, said: str) -> None:
    import re

    found = judged(root, cache, plan=PLAN.model_copy(update={"text": text}))
    assert found.losses is None
    assert re.search(said, found.notes[0])


def test_time_that_runs_out_is_said_in_words(root: Path, cache: Path) -> None:
    request = LoadRequest(
        cell=cell(model="lab/trained", weights="pretrained"), threads=2, device="cpu", cache_dir=str(cache), model_root=str(root)
    )  # fmt: skip
    engine = TransformersEngine()
    engine.start(request)
    engine.load(request)
    found = engine.judge(PLAN.model_copy(update={"agreement": False}), 0.0)
    assert found.losses is None
    assert "1 of 16 windows were read in the time a cell has" in found.notes[0]


def test_an_unquantized_model_that_is_read_too_slowly_costs_the_agreement_and_nothing_else(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference, "LONGEST_S", 0.2)
    found = judged(root, tmp_path, "int8")
    assert found.notes == ("no agreement: reading the text with the unquantized model took more than 0.2 s",)
    assert (found.agreement, found.tokens) == (None, 2048)


@pytest.mark.quantization
@pytest.mark.timeout(900)
def test_perplexity_is_ordered_by_bits_and_agreement_falls_with_them(root: Path, cache: Path) -> None:
    bits = (8, 4, 3, 2)
    found = [judged(root, cache, f"uniform-b{each}-channel") for each in bits]
    losses = [mean(each.losses) for each in found]
    kl = [each.agreement.mean_kl for each in found if each.agreement is not None]
    assert losses[1] < losses[2] < losses[3]
    assert kl == sorted(kl)
    assert math.isclose(losses[0], mean(judged(root, cache).losses), rel_tol=0.002)
