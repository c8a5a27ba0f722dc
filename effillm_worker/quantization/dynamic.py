"""Mixed precision: how much each layer suffers from few bits is measured on a text, then bits go where they help most."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

from effillm_server.contract.units import format_bytes
from effillm_worker.engines.base import Tick, Unsupported, silent
from effillm_worker.quantization import base
from effillm_worker.quantization.assign import Choice, path, total_bytes, total_harm
from effillm_worker.quantization.sensitivity import (
    Sample,
    Sensitivity,
    distributions,
    kept,
    mean_kl,
    mean_nll,
    planned,
    sample_of,
)

BITS = (2, 3, 4, 5, 6, 8)
HALF_PRECISION_BYTES = 2
TRIES = 60  # whole plans tried beyond what the layers' own sensitivities say
RANGE_BYTES = 8  # smallest value and step of an output channel, single precision

Plan = dict[str, Choice]


class Dynamic(base.Method):
    """Each linear layer as packed uniform codes, a range per output channel, at bits of its own.

    `memory`: the linear layers take at most this share of what they would in half precision. `quality`: the smallest plan whose
    perplexity on the calibration text rises by at most this share.
    """

    converts = True

    def start(self, device: str, dtype: str) -> None:
        import torch

        from effillm_worker.quantization.codes import UniformLinear

        kind = getattr(torch, dtype)
        layer = UniformLinear(torch.eye(64, dtype=kind), None, 3, channel=True).to(device)
        with torch.no_grad():
            layer(torch.ones(1, 64, dtype=kind, device=device))

    def convert(self, model: Any, tokenizer: Any, context: base.Conversion) -> dict[str, Any]:
        from effillm_worker.quantization.codes import UniformLinear, linear_layers, replace, weight_of

        vocabulary = int(model.get_input_embeddings().weight.shape[0])
        sample = sample_of(self.choices.get("text"), context, vocabulary)
        sensitivity = kept(model, sample, context)
        begin = time.monotonic()
        layers = choices(model, sensitivity)
        if "memory" in self.choices:
            plan, said = by_memory(model, layers, sample, float(self.choices["memory"]), context.tick)
        else:
            plan, said = by_quality(model, layers, sample, float(self.choices["quality"]), context.tick)
        for name, layer in linear_layers(model).items():
            if plan[name].bits in BITS:
                new = UniformLinear(weight_of(layer), layer.bias, plan[name].bits, channel=True)
                replace(model, name, new.to(layer.weight.device))
        mean_bits = _mean_bits(plan, layers)
        facts = {
            "plan": {name: choice.bits for name, choice in plan.items()},
            "mean_bits": mean_bits,
            "plan_bytes": total_bytes(plan),
            "predicted_kl": total_harm(plan),
            "sensitivity_at_2_3_4_bits": {name: list(by_bits.values()) for name, by_bits in sensitivity.kl.items()},
            "calibration": sample.described,
            **said,
        }
        seconds = sensitivity.seconds + time.monotonic() - begin
        # The budget is a limit, the plan what is stored: its bits are the row's.
        return {"seconds": seconds, "theoretical_bits": mean_bits, "facts": facts}

    def packed(self, module: Any) -> base.Packed | None:
        from effillm_worker.quantization.codes import packed_matrix

        return packed_matrix(module)


def choices(model: Any, sensitivity: Sensitivity) -> dict[str, tuple[Choice, ...]]:
    """What each linear layer may be stored as: 2 to 8 bits, or as it is."""
    from effillm_worker.quantization.codes import linear_layers, weight_of

    found = {}
    for name, layer in linear_layers(model).items():
        rows, columns = weight_of(layer).shape
        coded = [
            Choice(bits, math.ceil(rows * columns * bits / 8) + RANGE_BYTES * rows, sensitivity.harm(name, bits))
            for bits in BITS
        ]
        size = layer.weight.element_size()
        found[name] = (*coded, Choice(8 * size, rows * columns * size, 0.0))
    return found


def by_memory(
    model: Any, layers: dict[str, tuple[Choice, ...]], sample: Sample, share: float, tick: Tick = silent
) -> tuple[Plan, dict[str, Any]]:
    """The least harmful plan found within `share` of half precision. Raises Unsupported with the smallest there is."""
    half = HALF_PRECISION_BYTES * _weights(model)
    budget = int(share * half)
    smallest = sum(min(choice.bytes for choice in each) for each in layers.values())
    if smallest > budget:
        # Rounded up, so that the share named can be kept.
        least = math.ceil(1000 * smallest / half) / 1000
        raise Unsupported(
            f"no plan keeps the linear layers within {share:g} of half precision ({format_bytes(budget)}): the smallest possible, "
            f"2 bits everywhere, takes {format_bytes(smallest)}: set memory to at least {least:g}"
        )
    *_, plan = path(layers, budget)
    starts = [plan, *level_plan(layers, budget)]
    trial = Trial(model, sample, tick)
    found = [improved(start, layers, budget, trial, TRIES // len(starts)) for start in starts]
    plan, said = _best_unseen(model, [*sorted(found, key=trial), *starts], sample, tick)
    return plan, {"budget_bytes": budget, "measured_kl": trial(plan), "plans_tried": trial.tried, **said}


def _best_unseen(model: Any, plans: list[Plan], sample: Sample, tick: Tick) -> tuple[Plan, dict[str, Any]]:
    """The plan of the lowest perplexity on text that had no part in finding any; the first when there is no such text."""
    if not sample.unseen:
        return plans[0], {}
    unseen = Sample(sample.unseen, {})
    before = mean_nll(model, unseen)
    rises: list[float] = []
    for plan in plans:
        tick(len(rises), len(plans))
        with planned(model, _coded(plan)):
            rises.append(math.expm1(min(700.0, mean_nll(model, unseen) - before)))
    best = min(range(len(plans)), key=lambda index: rises[index])
    return plans[best], {"unseen_rise": rises[best]}


def _coded(plan: Plan) -> dict[str, int | None]:
    """Bits of each layer, None for one that stays as it is."""
    return {name: choice.bits if choice.bits in BITS else None for name, choice in plan.items()}


class Trial:
    """Whole plans tried on a sample: the mean KL of next tokens against the untouched model, nats. `tick` is called after each."""

    def __init__(self, model: Any, sample: Sample, tick: Tick = silent) -> None:
        self._model, self._sample, self._tick = model, sample, tick
        self._original = list(distributions(model, sample))
        self._known: dict[tuple[int, ...], float] = {}

    def __call__(self, plan: Plan) -> float:
        key = tuple(choice.bits for choice in plan.values())
        if key not in self._known:
            with planned(self._model, _coded(plan)):
                self._known[key] = mean_kl(self._original, distributions(self._model, self._sample))
            self._tick(self.tried, 0)
        return self._known[key]

    @property
    def tried(self) -> int:
        return len(self._known)


def level_plan(layers: dict[str, tuple[Choice, ...]], budget: int) -> list[Plan]:
    """All layers at the same bits, the most that fit; empty when none do."""
    level = [
        plan for bits in BITS if total_bytes(plan := {name: _at(each, bits) for name, each in layers.items()}) <= budget
    ]
    return level[-1:]


def improved(
    start: Plan, layers: dict[str, tuple[Choice, ...]], budget: int, trial: Callable[[Plan], float], tries: int
) -> Plan:
    """The best plan found by trying whole ones: bits are moved between two layers while that helps, at most `tries` times.

    Harms of single layers do not quite add up; they say in which order exchanges are tried.
    """
    best, harm = start, trial(start)
    left = tries
    while left > 0:
        for plan in exchanges(best, layers, budget)[:left]:
            left -= 1
            if (found := trial(plan)) < harm:
                best, harm = plan, found
                break
        else:
            break
    return best


def exchanges(plan: Plan, layers: dict[str, tuple[Choice, ...]], budget: int) -> list[Plan]:
    """Plans within budget that give one layer its next choice up, taken from another's next one down or from what is left.

    The most promising by the layers' own harms first.
    """
    spare = budget - total_bytes(plan)
    up = {name: step for name, each in layers.items() if (step := _next(each, plan[name], 1)) is not None}
    down = {name: step for name, each in layers.items() if (step := _next(each, plan[name], -1)) is not None}
    found: list[tuple[float, Plan]] = []
    for name, more in up.items():
        gain = plan[name].harm - more.harm
        needs = more.bytes - plan[name].bytes - spare
        if needs <= 0:
            found.append((-gain, plan | {name: more}))
            continue
        for other, less in down.items():
            if other != name and plan[other].bytes - less.bytes >= needs:
                found.append((less.harm - plan[other].harm - gain, plan | {name: more, other: less}))
    return [each for _, each in sorted(found, key=lambda pair: pair[0])]


def _at(choices: tuple[Choice, ...], bits: int) -> Choice:
    return next(choice for choice in choices if choice.bits == bits)


def _next(choices: tuple[Choice, ...], choice: Choice, step: int) -> Choice | None:
    place = choices.index(choice) + step
    return choices[place] if 0 <= place < len(choices) else None


def by_quality(
    model: Any, layers: dict[str, tuple[Choice, ...]], sample: Sample, share: float, tick: Tick = silent
) -> tuple[Plan, dict[str, Any]]:
    """The smallest plan on the way from 2 bits up whose measured rise of perplexity on the sample is at most `share`.

    Searched by halves, so some ten plans are tried. One keeps every budget: all layers as they are.
    """
    plans = list(path(layers))
    before = mean_nll(model, sample)
    rises: dict[int, float] = {}

    def rise(index: int) -> float:
        if index not in rises:
            with planned(model, _coded(plans[index])):
                rises[index] = math.expm1(min(700.0, mean_nll(model, sample) - before))
            tick(len(rises), 0)
        return rises[index]

    low, high = 0, len(plans) - 1  # the last plan leaves every layer as it is: no rise at all
    while low < high:
        middle = (low + high) // 2
        if rise(middle) <= share:
            high = middle
        else:
            low = middle + 1
    return plans[high], {"budget_rise": share, "measured_rise": rise(high), "plans_tried": len(rises)}


def _weights(model: Any) -> int:
    from effillm_worker.quantization.codes import linear_layers

    return sum(layer.weight.numel() for layer in linear_layers(model).values())


def _mean_bits(plan: Plan, layers: dict[str, tuple[Choice, ...]]) -> float:
    """Bits of a weight over all linear layers, ranges left out."""
    weights = {name: each[-1].bytes * 8 // each[-1].bits for name, each in layers.items()}
    return sum(plan[name].bits * count for name, count in weights.items()) / sum(weights.values())
