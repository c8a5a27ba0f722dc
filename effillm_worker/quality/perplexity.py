"""Perplexity by sliding windows: every token after the first is scored once, with context before it."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from effillm_server.contract.quality import Losses

if TYPE_CHECKING:
    import torch

LONGEST_WINDOW = 512
BLOCKS = 32
SMALLEST_BLOCK = 32
ROWS = 64  # rows of a vocabulary's width turned into float32 at a time


@dataclass(frozen=True)
class Window:
    """Tokens `begin` to `end` go through the model; those from `scored` on are scored, the others are context."""

    begin: int
    end: int
    scored: int


def windows(length: int, window: int, stride: int) -> Iterator[Window]:
    """Windows over `length` tokens. Token 0 has no context and is never scored."""
    if not 1 <= stride < window:
        raise ValueError(f"a stride lies from 1 to {window - 1}, found {stride}")
    scored = 1
    for begin in range(0, length, stride):
        end = min(begin + window, length)
        if end > scored:
            yield Window(begin, end, scored)
        scored = max(scored, end)


def sizes(context_window: int | None) -> tuple[int, int]:
    """Window and stride for a model: at most 512 tokens, advancing by half."""
    window = min(LONGEST_WINDOW, context_window or LONGEST_WINDOW)
    return window, max(1, window // 2)


# Called with the log probabilities that predict the scored tokens from `first` on, float32, shape [rows, vocabulary].
Look = Callable[[int, "torch.Tensor"], None]


def score(
    model: Any,
    ids: Sequence[int],
    window: int,
    stride: int,
    look: Look | None = None,
    tick: Callable[[], None] | None = None,
) -> torch.Tensor:
    """Negative log likelihood of ids[1:], natural logarithm, shape [len(ids) - 1], float64.

    Memory is one window's activations and logits, however long the text. `look` sees what predicts token 1 + first + row;
    `tick` is called after each window and may raise to stop.
    """
    import torch

    device = model.get_input_embeddings().weight.device
    tokens = torch.tensor(ids, device=device)
    found = torch.empty(len(ids) - 1, dtype=torch.float64)
    with torch.inference_mode():
        for each in windows(len(ids), window, stride):
            rows = _logits(model, tokens[each.begin : each.end], each.end - each.scored)  # [scored, vocabulary]
            targets = tokens[each.scored : each.end]
            for start in range(0, len(targets), ROWS):
                logp = torch.log_softmax(rows[start : start + ROWS].float(), dim=-1)
                first = each.scored - 1 + start
                nll = -logp.gather(1, targets[start : start + ROWS, None]).squeeze(1)
                found[first : first + len(nll)] = nll.double().cpu()
                if look is not None:
                    look(first, logp)
            if tick is not None:
                tick()
    return found


def losses(nll: torch.Tensor) -> Losses | None:
    """Means of up to 32 blocks of consecutive tokens, their sizes as equal as can be; None when one is not finite."""
    count = max(1, min(BLOCKS, len(nll) // SMALLEST_BLOCK))
    blocks = nll.tensor_split(count)
    means = tuple(float(block.mean()) for block in blocks)
    if not all(map(math.isfinite, means)):
        return None
    return Losses(nll=means, tokens=tuple(len(block) for block in blocks))


def mean_nll(model: Any, ids: Sequence[int], window: int, stride: int) -> float:
    """Mean negative log likelihood of ids[1:]: the logarithm of the perplexity."""
    return float(score(model, ids, window, stride).mean())


def _logits(model: Any, tokens: torch.Tensor, scored: int) -> torch.Tensor:
    """Logits that predict the last `scored` tokens, shape [scored, vocabulary]."""
    options: dict[str, Any] = {"use_cache": False, "attention_mask": tokens.new_ones(1, len(tokens))}
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        options["logits_to_keep"] = scored + 1
    logits: torch.Tensor = model(input_ids=tokens[None], **options).logits[0]
    return logits[-scored - 1 : -1]
