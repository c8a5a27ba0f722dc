from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from effillm_worker.engines.base import Unsupported
from effillm_worker.quantization import dynamic, sensitivity
from effillm_worker.quantization.assign import Choice, total_bytes
from effillm_worker.quantization.codes import dequantize, linear_layers, quantize
from tests.support import trained
from tests.support.conversion import Bed, linear_bytes, one_thread

LABEL = "dynamic-m0.3@calibration.txt"


@pytest.fixture(scope="module")
def bed(tmp_path_factory: pytest.TempPathFactory) -> Bed:
    return Bed.make(tmp_path_factory.mktemp("dynamic"))


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(autouse=True)
def _little(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Less text and fewer trials where nothing depends on how good a plan is."""
    if "beats" not in request.node.name:
        monkeypatch.setattr(sensitivity, "TOKENS", 512)
        monkeypatch.setattr(sensitivity, "UNSEEN_TOKENS", 1024)
        monkeypatch.setattr(dynamic, "TRIES", 10)


def test_plan_is_stored_keeps_its_budget_and_says_what_it_rests_on(bed: Bed) -> None:
    model, said = bed.convert(LABEL)
    facts = said["facts"]
    weights = sum(layer.weight.numel() for layer in linear_layers(bed.load()).values())
    assert linear_bytes(LABEL, model) == facts["plan_bytes"] <= facts["budget_bytes"] == int(0.3 * 2 * weights)
    assert set(facts["plan"]) == set(linear_layers(bed.load()))
    assert len(set(facts["plan"].values())) > 1  # the layers differ, and so do their bits
    assert facts["calibration"]["text"] == "calibration.txt"
    assert (facts["calibration"]["tokens"], facts["calibration"]["unseen_tokens"]) == (512, 1024)
    assert said["seconds"] > 0


def test_bits_of_each_layer_are_those_of_the_plan(bed: Bed) -> None:
    model, said = bed.convert(LABEL)
    stored = {name: module.bits for name, module in model.named_modules() if hasattr(module, "bits")}
    assert stored == {name: bits for name, bits in said["facts"]["plan"].items() if bits <= 8}


def test_bits_in_theory_are_the_plans_mean_and_not_the_budget(bed: Bed) -> None:
    model, said = bed.convert(LABEL)
    layers = [module for module in model.modules() if hasattr(module, "bits")]
    assert len(layers) == len(said["facts"]["plan"])  # so small a budget leaves no layer as it is
    weights = [layer.in_features * layer.out_features for layer in layers]
    mean = sum(layer.bits * count for layer, count in zip(layers, weights, strict=True)) / sum(weights)
    assert said["theoretical_bits"] == pytest.approx(mean)
    assert said["theoretical_bits"] < 16 * 0.3 - 0.05  # a range per output channel takes its part of the budget


def test_each_layer_and_each_plan_tried_is_told(bed: Bed, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    _, said = bed.convert(LABEL, tmp_path, lambda *step: told.append(step))
    layers = len(said["facts"]["plan"])
    assert told[:layers] == [(layer, layers) for layer in range(1, layers + 1)]
    tried = said["facts"]["plans_tried"]
    assert told[layers : layers + tried] == [(plan, 0) for plan in range(1, tried + 1)]
    compared = told[layers + tried :]
    assert compared == [(plan, len(compared)) for plan in range(len(compared))]
    assert compared
    assert tried > 1


@pytest.mark.quantization
def test_sensitivity_is_measured_once_for_all_budgets(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    bed.convert(LABEL)

    def again(*_: object) -> None:
        raise AssertionError("measured twice")

    monkeypatch.setattr(sensitivity, "measure", again)
    bed.convert("dynamic-m0.5@calibration.txt")


@pytest.mark.quantization
def test_weights_are_put_back_after_each_trial(bed: Bed) -> None:
    model, untouched = bed.load(), bed.load()
    sample = sensitivity.sample_of("calibration.txt", bed.context(LABEL), trained.VOCABULARY)
    found = sensitivity.measure(model, sample)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), untouched.parameters(), strict=True))
    harms = [by_bits[2] for by_bits in found.kl.values()], [by_bits[4] for by_bits in found.kl.values()]
    assert sum(harms[0]) > 4 * sum(harms[1]) > 0


@pytest.mark.quantization
def test_sensitivity_of_a_layer_is_the_divergence_it_causes_alone(bed: Bed) -> None:
    model = bed.load()
    sample = sensitivity.sample_of("calibration.txt", bed.context(LABEL), trained.VOCABULARY)
    name, layer = next(iter(linear_layers(model).items()))
    before = torch.cat(list(sensitivity.distributions(model, sample)))
    found = sensitivity.measure(model, sample).kl[name][3]
    layer.weight.data = dequantize(*quantize(layer.weight, 3, channel=True), torch.float32)
    after = torch.cat(list(sensitivity.distributions(model, sample)))
    expected = torch.nn.functional.kl_div(after.double(), before.double(), reduction="batchmean", log_target=True)
    assert found == pytest.approx(float(expected), rel=1e-3)


def test_more_bits_than_measured_do_a_quarter_of_the_harm_each(bed: Bed) -> None:
    known = sensitivity.Sensitivity({"layer": {2: 1.0, 3: 1.5, 4: 0.1}}, 0.0)
    assert [known.harm("layer", bits) for bits in (2, 3, 4, 5, 8)] == pytest.approx([1.0, 1.0, 0.1, 0.025, 0.1 / 256])


def test_whole_plans_decide_where_the_harms_of_single_layers_mislead() -> None:
    layers = {
        name: tuple(Choice(bits, 10 * bits, harm * 4.0 ** (2 - bits)) for bits in dynamic.BITS)
        for name, harm in (("a", 1.0), ("b", 0.9), ("c", 0.8))
    }
    truth = {"a": 0.1, "b": 0.1, "c": 5.0}  # together, layer c is the frail one

    def trial(plan: dynamic.Plan) -> float:
        return sum(truth[name] * 4.0 ** (2 - choice.bits) for name, choice in plan.items())

    start = {"a": 5, "b": 4, "c": 3}
    tried: list[dynamic.Plan] = []

    def counted(plan: dynamic.Plan) -> float:
        tried.append(plan)
        return trial(plan)

    first = {name: dynamic._at(layers[name], bits) for name, bits in start.items()}
    plan = dynamic.improved(first, layers, 120, counted, 60)
    assert total_bytes(plan) <= 120
    assert trial(plan) < 0.2 * trial(first)
    assert plan["c"].bits > max(plan["a"].bits, plan["b"].bits)
    assert len(tried) <= 61


@pytest.mark.quantization
def test_a_plan_is_never_worse_on_unseen_text_than_the_same_bits_for_all(bed: Bed) -> None:
    model, context = bed.load(), bed.context(LABEL)
    sample = sensitivity.sample_of("calibration.txt", context, trained.VOCABULARY)
    layers = dynamic.choices(model, sensitivity.kept(model, sample, context))
    budget = total_bytes({name: dynamic._at(each, 3) for name, each in layers.items()})
    weights = sum(layer.weight.numel() for layer in linear_layers(model).values())
    plan, said = dynamic.by_memory(model, layers, sample, (budget + 0.5) / (2 * weights))
    (level,) = dynamic.level_plan(layers, budget)
    unseen = sensitivity.Sample(sample.unseen, {})
    assert {choice.bits for choice in level.values()} == {3}
    assert said["measured_kl"] == pytest.approx(dynamic.Trial(model, sample)(plan), rel=1e-6)
    before = sensitivity.mean_nll(model, unseen)
    after = []
    for each in (plan, level):
        with sensitivity.planned(model, dynamic._coded(each)):
            after.append(sensitivity.mean_nll(model, unseen))
    assert said["unseen_rise"] == pytest.approx(math.expm1(after[0] - before))
    assert after[0] <= after[1]


def test_a_budget_no_plan_can_meet_says_the_smallest_possible(bed: Bed) -> None:
    with pytest.raises(
        Unsupported, match=r"no plan keeps the linear layers within 0\.1 .* set memory to at least"
    ) as refused:
        bed.convert("dynamic-m0.1@calibration.txt")
    least = str(refused.value).rpartition(" ")[2]
    model, _ = bed.convert(f"dynamic-m{least}@calibration.txt")
    assert {module.bits for module in model.modules() if hasattr(module, "bits")} == {2}


@pytest.mark.quantization
def test_a_quality_budget_gives_the_smallest_plan_that_keeps_it_on_the_calibration_text(bed: Bed) -> None:
    tight, loose = (
        bed.convert("dynamic-q0.002@calibration.txt")[1]["facts"],
        bed.convert("dynamic-q0.1@calibration.txt")[1]["facts"],
    )
    assert tight["measured_rise"] <= 0.002
    assert loose["measured_rise"] <= 0.1
    assert loose["plan_bytes"] < tight["plan_bytes"]


def test_calibration_text_that_is_too_short_says_how_long_it_must_be(bed: Bed) -> None:
    (bed.root / "short.txt").write_text("A word or two.")
    with pytest.raises(Unsupported, match=r"'short\.txt' has \d+ tokens, 256 are needed"):
        bed.convert("dynamic-m0.5@short.txt")


def test_a_text_that_is_not_there_is_named(bed: Bed) -> None:
    with pytest.raises(Unsupported, match=r"there is no text 'none\.txt' below the model root"):
        bed.convert("dynamic-m0.5@none.txt")


@pytest.mark.quantization
@pytest.mark.timeout(900)
def test_dynamic_beats_uniform_bits_at_equal_memory_on_held_out_text(tmp_path: Path) -> None:
    won = 0
    for seed in range(3):
        bed = Bed.make(tmp_path / str(seed), "full", seed)
        uniform, _ = bed.convert("uniform-b3-channel")
        weights = sum(layer.weight.numel() for layer in linear_layers(bed.load()).values())
        share = linear_bytes("uniform-b3-channel", uniform) / (2 * weights)
        label = f"dynamic-m{math.ceil(1e6 * share) / 1e6:.6f}@calibration.txt"
        mixed, _ = bed.convert(label)
        assert linear_bytes(label, mixed) <= linear_bytes("uniform-b3-channel", uniform)
        print(seed, bed.nll(bed.load()), bed.nll(uniform), bed.nll(mixed))
        won += bed.nll(mixed) < bed.nll(uniform)
    assert won >= 2
