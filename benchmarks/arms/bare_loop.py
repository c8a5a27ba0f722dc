"""A bare `generate` loop around a model folder: no meter, no callback. Needs torch and transformers only, any version.

Usage: python bare_loop.py '{"model": FOLDER, "batch": 1, "sequence": 128, "tokens": 32, "warmup": 3, "iterations": 10, "threads": 2}'
Prints one JSON object: median seconds of full and of one-token generations, and the decode rate from their difference.
"""

from __future__ import annotations

import json
import sys
import time
from statistics import median
from typing import Any


def main(order: dict[str, Any]) -> dict[str, float]:
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(order["threads"])
    torch.set_num_interop_threads(1)
    model = AutoModelForCausalLM.from_pretrained(order["model"], local_files_only=True)
    model = model.to(torch.float32).eval()
    generator = torch.Generator().manual_seed(0)
    prompt = torch.randint(4, model.config.vocab_size, (order["batch"], order["sequence"]), generator=generator)
    full, first = order["tokens"], 1

    def seconds(tokens: int) -> float:
        started = time.perf_counter()
        with torch.inference_mode():
            out = model.generate(
                prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=tokens, min_new_tokens=tokens,
                do_sample=False, pad_token_id=0,
            )  # fmt: skip
        elapsed = time.perf_counter() - started
        if out.shape[1] != order["sequence"] + tokens:
            raise RuntimeError(f"asked for {tokens} tokens, got {out.shape[1] - order['sequence']}")
        return elapsed

    for _ in range(order["warmup"]):
        seconds(full)
    whole = median(seconds(full) for _ in range(order["iterations"]))
    one = median(seconds(first) for _ in range(order["iterations"]))
    return {
        "e2e_s": whole,
        "ttft_s": one,
        "decode_tok_s": (full - 1) * order["batch"] / (whole - one),
        "throughput_tok_s": full * order["batch"] / whole,
    }


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
