"""Trains the catalog's tokenizer on the catalog's texts: `python -m effillm_server.catalog.train_tokenizer`.

A synthetic-weight model has no tokenizer of its own at hand. This one stands in: byte-level, so that it encodes anything,
and with a vocabulary small enough that its ids exist in every model. Text lengths therefore differ from those of the
model's own tokenizer, which is why results state the lengths they were measured at. Needs the `worker` extra.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from effillm_server.catalog import TOKENIZER, load

VOCABULARY = 4096
END_OF_TEXT = "<|endoftext|>"


def train() -> Any:
    """A byte-level BPE `tokenizers.Tokenizer` trained on every prompt of the catalog."""
    # By name: the server has no business importing the library, and this runs only when the texts change.
    tokenizers = importlib.import_module("tokenizers")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        min_frequency=2,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    texts = [prompt.render() for workload in load().workloads.values() for prompt in workload.prompts]
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def main(path: Path = TOKENIZER) -> None:
    """Writes the tokenizer to `path`."""
    path.write_text(train().to_str(pretty=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
