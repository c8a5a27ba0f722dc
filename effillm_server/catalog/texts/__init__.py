"""The catalog's running texts, all written for this project and under its licence (Apache-2.0)."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from effillm_server import catalog

HERE = Path(__file__).parent


@cache
def evaluation() -> str:
    """What quality is measured on: anecdotes, explanations, dialogues, 5,516 tokens of the catalog's tokenizer. None trains on it."""
    return (HERE / "evaluation.txt").read_text(encoding="utf-8")


@cache
def calibration() -> str:
    """What quantization methods may look at and be tuned on: the prompts of the workloads, none of them in `evaluation`."""
    prompts = [prompt.render() for workload in catalog.load().workloads.values() for prompt in workload.prompts]
    return "\n\n".join(prompts)
