"""Loading and generating once with a model of a few kilobytes, so that `baseline` memory holds the code that takes part."""

from __future__ import annotations

import gc
import tempfile
from typing import Any

from effillm_worker.engines.checkpoint import dtype_argument

SIZES = {
    "hidden_size": 128, "intermediate_size": 512, "num_attention_heads": 2, "num_hidden_layers": 1,
    "vocab_size": 512, "max_position_embeddings": 256,
}  # fmt: skip
PROMPT = (2, 128)
TOKENS = 4


def rehearse(torch: Any, dtype: str, options: dict[str, Any]) -> None:
    """Write, load with `options` and run a tiny model on the processor, and drop it.

    Modules imported late, pages of the libraries' code, thread pools and scratch buffers come with the first load and the first
    generation. They stay for the life of the process, so they belong to the process and not to the model it loads next.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    config = AutoConfig.for_model("gpt_neox", **SIZES)
    with tempfile.TemporaryDirectory() as folder:
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(
            folder, device_map={"": "cpu"}, trust_remote_code=False, use_safetensors=True,
            **dtype_argument(getattr(torch, dtype)), **options,
        )  # fmt: skip
    ids = torch.ones(PROMPT, dtype=torch.long)
    settings = GenerationConfig(max_new_tokens=TOKENS, do_sample=False, eos_token_id=None, pad_token_id=0)
    model.eval().generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=settings)
    del model
    gc.collect()
