"""Small models that the tests train themselves: a real architecture, a real tokenizer, weights that know something.

`folder("quick")` and `folder("full", seed=1)` give a checkpoint as transformers reads it. It is trained once, in a process of
its own with fixed seeds, and kept outside the tree under a name made from everything that decides it.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from effillm_server import catalog
from effillm_worker.weights import written_once
from tests.support import stories

REPOSITORY = Path(__file__).resolve().parents[2]
RECIPE = 1  # to be raised with every change of how tokenizer and model are made below
END_OF_TEXT = "<|endoftext|>"
VOCABULARY = 512
WINDOW = 128
HELD_OUT = 1_000_000  # number of the first story that no model has seen


@dataclass(frozen=True)
class Tier:
    """Size of a model and of its training."""

    layers: int
    width: int
    steps: int
    batch_size: int
    stories: int


TIERS = {
    "quick": Tier(layers=2, width=128, steps=80, batch_size=8, stories=600),  # some ten seconds on two idle processors
    "full": Tier(layers=2, width=128, steps=260, batch_size=12, stories=2000),  # some two minutes of a processor
}


def folder(tier: str = "quick", seed: int = 0) -> Path:
    """Folder of the trained checkpoint: config, safetensors and tokenizer; trained now if it is not there yet."""
    kept = _root() / f"{tier}-{seed}-{_key(tier, seed)}"
    if not kept.is_dir():
        done = subprocess.run(
            [sys.executable, "-m", "tests.support.trained", tier, str(seed), str(kept)],
            cwd=REPOSITORY, capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "2"},
        )  # fmt: skip
        if done.returncode != 0:
            raise RuntimeError(f"training the {tier} model failed:\n{done.stderr[-3000:]}")
    return kept


def held_out(count: int = 60) -> str:
    """Stories of the same kind that no model was trained on."""
    return stories.stories(HELD_OUT, count)


def training_text(tier: str = "quick") -> str:
    """What the models are trained on: stories, and the prompts of the catalog's workloads."""
    prompts = [prompt.render() for workload in catalog.load().workloads.values() for prompt in workload.prompts]
    return "\n\n".join([stories.stories(0, TIERS[tier].stories), *prompts])


def _root() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(cache) / "effillm-tests" / "trained"


def _key(tier: str, seed: int) -> str:
    """Digest of everything that decides the weights."""
    import torch

    sizes = {"recipe": RECIPE, "vocabulary": VOCABULARY, "window": WINDOW, **asdict(TIERS[tier])}
    parts = [training_text(tier), repr(sizes), str(seed), torch.__version__]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]


def train(tier: str, seed: int, out: Path) -> None:
    """Train tokenizer and model and write both into `out`."""
    import torch

    torch.manual_seed(seed)
    tokenizer = _tokenizer(training_text(tier))
    data = torch.tensor(tokenizer(training_text(tier))["input_ids"])
    model = _model(TIERS[tier])
    _fit(torch, model, data, TIERS[tier], seed)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def _tokenizer(text: str) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[END_OF_TEXT], show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )  # fmt: skip
    raw.train_from_iterator(text.split("\n\n"), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token=END_OF_TEXT, bos_token=END_OF_TEXT)


def _model(tier: Tier) -> Any:
    from transformers import AutoModelForCausalLM, GPTNeoXConfig

    config = GPTNeoXConfig(
        vocab_size=VOCABULARY, hidden_size=tier.width, intermediate_size=4 * tier.width, num_hidden_layers=tier.layers,
        num_attention_heads=4, max_position_embeddings=2 * WINDOW, bos_token_id=0, eos_token_id=0,
        tie_word_embeddings=False, dtype="float32",
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config)


def _fit(torch: Any, model: Any, data: Any, tier: Tier, seed: int) -> None:
    """AdamW with a warm-up and a cosine, on random windows of the text."""
    draw = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=tier.steps, pct_start=0.1)
    model.train()
    for _ in range(tier.steps):
        starts = torch.randint(len(data) - WINDOW, (tier.batch_size,), generator=draw).tolist()
        ids = torch.stack([data[start : start + WINDOW] for start in starts])  # [batch, window]
        loss = model(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.eval()


def main(tier: str, seed: int, kept: Path) -> None:
    """Train into `kept`, unless another process has."""
    with written_once(kept) as part:
        if part is not None:
            train(tier, seed, part)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
