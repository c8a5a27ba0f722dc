"""The process with both loops for real: torch, a small model, two blocks."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from effillm_worker import paired
from effillm_worker.doctor.noise import cell_of
from tests.support.isolation import device

TINY = {
    "model_type": "gpt_neox", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
    "vocab_size": 256, "max_position_embeddings": 128,
}  # fmt: skip
BOX = device(processors=tuple(os.sched_getaffinity(0)))


def test_a_pair_times_the_same_model_by_both_loops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cell = cell_of(BOX).model_copy(update={"sequence_length": 8, "generate_tokens": 4})
    monkeypatch.setattr(
        paired, "load", lambda: SimpleNamespace(models={cell.model: SimpleNamespace(architecture=TINY)})
    )
    with paired.arm(BOX, cell, tmp_path, use_threads=1) as both:
        assert both.ask("") == {"ready": True}
        pairs = [both.pair(number, block=2) for number in range(2)]
        firsts = [both.first_tokens(number, 3) for number in range(2)]
    assert both.process.returncode == 0
    for session, bare in pairs:
        for block in (session, bare):
            assert set(block) == {"throughput_tok_s", "wall_s"}
            # Two generations of four tokens: no mean speed can be above what the whole block's time allows.
            assert block["throughput_tok_s"] >= 8 / block["wall_s"] > 0
    assert all(seconds > 0 for first in firsts for seconds in first)
    # The stream has the token before the generation that made it has come back.
    assert all(streamed < returned for _, streamed, returned in firsts)


def test_an_arm_that_cannot_load_says_its_last_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paired, "ARM", "effillm_worker.no_such_module")
    with paired.arm(BOX, cell_of(BOX), tmp_path) as both, pytest.raises(paired.ArmEnded, match="no_such_module"):
        both.ask("")
