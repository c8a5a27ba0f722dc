"""The fine-tuning of `qat`: the model learns to say under quantized matrices what it says without."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from effillm_worker.engines.base import Tick, Unsupported, silent
from effillm_worker.quantization.codes import dequantize, linear_layers, quantize, weight_of

SEED = 20_240_229
BATCH_SIZE = 8
LENGTH = 128
WARM_UP_SHARE = 0.1
NORM = 1.0
PAUSES = 10  # how often the loss on unseen text is taken
WORSE = 1.5  # ending at more than this many times the first loss, and by more than the slack, is a divergence
SLACK = 0.01  # nats: at many bits the first loss is next to nothing


@dataclass(frozen=True)
class Recipe:
    """How to train: bits simulated, steps of AdamW, its highest learning rate."""

    bits: int
    steps: int
    learning_rate: float

    @property
    def described(self) -> dict[str, Any]:
        return {
            "bits": self.bits, "steps": self.steps, "learning_rate": self.learning_rate, "batch_size": BATCH_SIZE,
            "length": LENGTH, "seed": SEED, "loss": "KL(unquantized || quantized) of next tokens",
        }  # fmt: skip


def train(
    model: Any, ids: Sequence[int], recipe: Recipe, context_window: int | None, tick: Tick = silent
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The trained matrix of every linear layer, [out, in], float32, on the CPU; and the course of the loss.

    The model is left as it was. Only matrices of linear layers learn; the teacher is the model itself, unquantized, so the text
    need not be what it was trained on. Every tenth of the steps the loss is taken on a part of the text that is not trained on, and
    the matrices of the smallest are kept, those of the beginning among them. `tick` is called after each step. Raises Unsupported when
    the training diverges.
    """
    length = min(LENGTH, context_window or LENGTH)
    text, unseen = _split(torch.tensor(ids), length)
    with _simulated(model, recipe.bits) as layers:
        course = [_unseen_loss(model, layers, unseen)]
        best = _copied(layers)
        pause = max(1, math.ceil(recipe.steps / PAUSES))
        for step in _steps(model, layers, text, length, recipe):
            tick(step, recipe.steps)
            if step % pause == 0 or step == recipe.steps:
                course.append(_unseen_loss(model, layers, unseen))
                if course[-1] == min(course):
                    best = _copied(layers)
    if not course[-1] <= WORSE * course[0] + SLACK:
        raise Unsupported(
            f"qat diverged: its loss on unseen text rose from {course[0]:.4g} to {course[-1]:.4g} nats in {recipe.steps} steps at "
            f"learning rate {recipe.learning_rate:g}: set a smaller learning_rate"
        )
    return best, {"unseen_losses": course, "kept_after_step": min(course.index(min(course)) * pause, recipe.steps)}


def _split(ids: torch.Tensor, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What is trained on, and windows of the text's last tenth, [windows, length], that are not."""
    count = max(1, min(BATCH_SIZE, len(ids) // (10 * length)))
    return ids[: -count * length], ids[-count * length :].reshape(count, length)


def _copied(layers: dict[str, SimulatedLinear]) -> dict[str, torch.Tensor]:
    return {name: layer.weight.detach().to("cpu", copy=True) for name, layer in layers.items()}


@torch.no_grad()
def _unseen_loss(model: Any, layers: dict[str, SimulatedLinear], unseen: torch.Tensor) -> float:
    return float(_distance(model, layers, unseen.to(next(iter(layers.values())).weight.device)))


class SimulatedLinear(nn.Module):
    """A linear layer whose matrix is trained in float32 and multiplied as its codes stand for it, or, as teacher, as it was."""

    def __init__(self, layer: Any, bits: int) -> None:
        super().__init__()
        self.bits = bits
        self.is_teacher = False
        self.original = weight_of(layer).detach()
        self.weight = nn.Parameter(self.original.to(torch.float32, copy=True))
        self.bias = layer.bias

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if self.is_teacher:
            return nn.functional.linear(inputs, self.original, self.bias)
        values = dequantize(*quantize(self.weight, self.bits, channel=True), torch.float32)
        # Straight through: rounding has no useful slope, so backwards it counts as none at all.
        matrix = self.weight + (values - self.weight).detach()
        return nn.functional.linear(inputs, matrix.to(inputs.dtype), self.bias)


@contextmanager
def _simulated(model: Any, bits: int) -> Iterator[dict[str, SimulatedLinear]]:
    """The model with simulated layers in place of its linear ones, everything else frozen; put back at the end."""
    from effillm_worker.quantization.codes import replace

    originals = linear_layers(model)
    frozen = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    for parameter, _ in frozen:
        parameter.requires_grad_(False)
    layers = {name: SimulatedLinear(layer, bits) for name, layer in originals.items()}
    try:
        for name, layer in layers.items():
            replace(model, name, layer)
        yield layers
    finally:
        for name, original in originals.items():
            replace(model, name, original)
        for parameter, wanted in frozen:
            parameter.requires_grad_(wanted)


def _steps(
    model: Any, layers: dict[str, SimulatedLinear], ids: torch.Tensor, length: int, recipe: Recipe
) -> Iterator[int]:
    """Does the steps; the number of those done, after each. Raises Unsupported when a loss is not finite."""
    parameters = [layer.weight for layer in layers.values()]
    optimizer = torch.optim.AdamW(parameters, lr=recipe.learning_rate, weight_decay=0.0)
    draw = torch.Generator().manual_seed(SEED)
    device = parameters[0].device
    for step in range(recipe.steps):
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * _schedule(step, recipe.steps)
        starts = torch.randint(len(ids) - length + 1, (BATCH_SIZE,), generator=draw).tolist()
        batch = torch.stack([ids[start : start + length] for start in starts]).to(device)  # [batch, length]
        loss = _distance(model, layers, batch)
        if not math.isfinite(float(loss.detach())):
            raise Unsupported(
                f"qat diverged: its loss was not finite at step {step + 1} of {recipe.steps} at learning rate "
                f"{recipe.learning_rate:g}: set a smaller learning_rate"
            )
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, NORM)
        optimizer.step()
        yield step + 1


def _distance(model: Any, layers: dict[str, SimulatedLinear], batch: torch.Tensor) -> torch.Tensor:
    """Mean KL(unquantized || quantized) of next tokens, nats."""
    options = {"input_ids": batch, "attention_mask": torch.ones_like(batch), "use_cache": False}
    _teach(layers, is_teacher=True)
    with torch.no_grad():
        wanted = torch.log_softmax(model(**options).logits.float(), dim=-1)
    _teach(layers, is_teacher=False)
    said = torch.log_softmax(model(**options).logits.float(), dim=-1)
    return (wanted.exp() * (wanted - said)).sum(dim=-1).mean()


def _teach(layers: dict[str, SimulatedLinear], *, is_teacher: bool) -> None:
    for layer in layers.values():
        layer.is_teacher = is_teacher


def _schedule(step: int, steps: int) -> float:
    """Share of the highest learning rate: a linear warm-up, then a cosine down to a tenth."""
    warm = max(1, round(WARM_UP_SHARE * steps))
    if step < warm:
        return (step + 1) / warm
    return 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))
