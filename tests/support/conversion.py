"""A trained model and the context in which a method converts it, without an engine around them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from effillm_worker.engines.base import Tick, silent
from effillm_worker.quality import perplexity
from effillm_worker.quantization import method
from effillm_worker.quantization.base import Conversion, account
from effillm_worker.weights import Source
from tests.support import trained

EVALUATED = 3000  # tokens of held-out text that perplexities are compared on
CONTEXT = 2 * trained.WINDOW


@contextmanager
def one_thread() -> Iterator[None]:
    """Products this small gain nothing from a second thread, and wait for it on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True)
class Bed:
    """One trained model; every `load` is a fresh copy. `root` holds a file with text like what it was trained on."""

    folder: Path
    root: Path

    @classmethod
    def make(cls, root: Path, tier: str = "quick", seed: int = 0) -> Bed:
        root.mkdir(parents=True, exist_ok=True)
        # Of the same kind as the training text and the held-out one, and part of neither.
        (root / "calibration.txt").write_text(trained.stories.stories(2 * trained.HELD_OUT, 200))
        return cls(trained.folder(tier, seed), root)

    def load(self) -> Any:
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float32).eval()

    def encode(self, texts: Any) -> list[list[int]]:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(self.folder)
        return [list(tokenizer(text, verbose=False)["input_ids"]) for text in texts]

    def context(self, label: str, cache_dir: Path | None = None, tick: Tick = silent) -> Conversion:
        return Conversion(
            label=label, device="cpu", dtype="float32", cache_dir=cache_dir or self.root / "cache", model_root=str(self.root),
            source=Source(str(self.folder)), identity=self.folder.name, encode=self.encode, threads=2, longest=CONTEXT,
            tick=tick,
        )  # fmt: skip

    def convert(self, label: str, cache_dir: Path | None = None, tick: Tick = silent) -> tuple[Any, dict[str, Any]]:
        """A fresh model as the label's method makes it, and what it says of it."""
        model, made = self.load(), method(label)
        made.start("cpu", "float32")
        said = made.convert(model, None, self.context(label, cache_dir, tick))
        return model, said

    def nll(self, model: Any) -> float:
        """Mean loss on held-out text, nats a token."""
        ids = self.encode([trained.held_out(60)])[0][:EVALUATED]
        return perplexity.mean_nll(model, ids, CONTEXT, CONTEXT // 2)


def linear_bytes(label: str, model: Any) -> int:
    """Bytes of the layers that the label's method stores in its own way."""
    made = method(label)
    packed = [made.packed(module) for module in model.modules()]
    return sum(each.stored.bytes for each in packed if each is not None)


def total_bytes(label: str, model: Any) -> int:
    """Bytes of everything the model stores."""
    return account(method(label), model).bytes
