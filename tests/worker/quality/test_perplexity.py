from __future__ import annotations

import math
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from effillm_worker.quality import perplexity
from effillm_worker.quality.perplexity import Window, losses, score, sizes, windows
from tests.support import trained


class Counting(torch.nn.Module):
    """A model of four tokens that predicts from the previous token alone, and counts what it was given."""

    def __init__(self, table: torch.Tensor) -> None:
        super().__init__()
        self.table = torch.nn.Embedding.from_pretrained(table.log())
        self.longest = 0

    def get_input_embeddings(self) -> torch.nn.Embedding:
        return self.table

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, use_cache: bool) -> Any:
        self.longest = max(self.longest, input_ids.shape[1])
        return SimpleNamespace(logits=self.table(input_ids))


@given(length=st.integers(2, 400), window=st.integers(2, 64), share=st.floats(0, 1))
def test_every_token_but_the_first_is_scored_once_and_keeps_its_context(length: int, window: int, share: float) -> None:
    stride = max(1, round(share * (window - 1)))
    found = list(windows(length, window, stride))
    scored = [token for each in found for token in range(each.scored, each.end)]
    assert scored == list(range(1, length))
    assert all(each.end - each.begin <= window for each in found)
    assert all(each.scored - each.begin >= window - stride for each in found[1:])


def test_windows_of_a_short_text_are_one() -> None:
    assert list(windows(10, 16, 8)) == [Window(0, 10, 1)]


def test_stride_must_leave_context() -> None:
    with pytest.raises(ValueError, match="a stride lies from 1 to 15, found 16"):
        list(windows(100, 16, 16))


def test_window_is_the_models_own_up_to_512() -> None:
    assert sizes(None) == (512, 256)
    assert sizes(4096) == (512, 256)
    assert sizes(128) == (128, 64)


def test_loss_of_a_known_model_is_its_closed_form_whatever_the_window() -> None:
    table = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.7, 0.1, 0.1, 0.1], [0.25] * 4, [0.05, 0.05, 0.1, 0.8]])
    ids = torch.randint(4, (257,), generator=torch.Generator().manual_seed(5)).tolist()
    expected = [-math.log(table[before, after]) for before, after in pairwise(ids)]
    for window, stride in ((16, 8), (16, 15), (300, 100)):
        model = Counting(table)
        found = score(model, ids, window, stride)
        torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-6)
        assert model.longest <= window


def test_look_sees_the_distribution_that_predicts_each_token() -> None:
    table = torch.softmax(torch.randn(4, 4, generator=torch.Generator().manual_seed(2)), dim=-1)
    ids = torch.randint(4, (101,), generator=torch.Generator().manual_seed(3)).tolist()
    seen: dict[int, torch.Tensor] = {}

    def look(first: int, logp: torch.Tensor) -> None:
        seen.update({first + row: logp[row] for row in range(len(logp))})

    nll = score(Counting(table), ids, 32, 16, look)
    assert sorted(seen) == list(range(100))
    assert all(math.isclose(-float(seen[k][ids[k + 1]]), float(nll[k]), rel_tol=1e-6) for k in seen)


def test_tick_ends_the_reading_when_it_raises() -> None:
    def tick() -> None:
        raise TimeoutError

    with pytest.raises(TimeoutError):
        score(Counting(torch.full((4, 4), 0.25)), [0] * 50, 16, 8, tick=tick)


def test_blocks_hold_every_token_and_differ_by_one_at_most() -> None:
    nll = torch.arange(1003, dtype=torch.float64)
    found = losses(nll)
    assert found is not None
    assert sum(found.tokens) == 1003
    assert len(found.nll) == 31
    assert max(found.tokens) - min(found.tokens) <= 1
    total = sum(mean * count for mean, count in zip(found.nll, found.tokens, strict=True))
    assert math.isclose(total, 1003 * 1002 / 2)


def test_a_loss_that_is_no_number_gives_no_blocks() -> None:
    assert losses(torch.tensor([1.0, float("nan"), 2.0], dtype=torch.float64)) is None


def test_perplexity_of_a_trained_model_is_what_transformers_own_loss_gives() -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = trained.folder("quick")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = AutoTokenizer.from_pretrained(folder)(trained.held_out(8), verbose=False)["input_ids"]
    window, stride = 128, 64
    found = math.exp(perplexity.mean_nll(model, ids, window, stride))
    assert abs(found - _by_labels(model, ids, window, stride)) < 1e-4
    assert found < 12  # the grammar is learnt: guessing among the vocabulary would be 512


def _by_labels(model: Any, ids: list[int], window: int, stride: int) -> float:
    """The recipe of transformers' documentation: labels of the context are -100, the loss is a mean over the others."""
    total, count, done = 0.0, 0, 1
    for begin in range(0, len(ids), stride):
        end = min(begin + window, len(ids))
        if end <= done:
            break
        tokens = torch.tensor([ids[begin:end]])
        labels = tokens.clone()
        labels[:, : done - begin] = -100
        with torch.no_grad():
            mean = float(model(tokens, labels=labels).loss)
        total += mean * (end - done)
        count += end - done
        done = end
    return math.exp(total / count)
