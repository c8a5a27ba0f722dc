from __future__ import annotations

from typing import Any

import pytest

from effillm_server.cli import evidence
from effillm_server.cli.evidence import plan_lines

PLAN = {
    "layers.0.attention": 3, "layers.0.mlp": 4, "layers.1.attention": 2, "layers.1.mlp": 8,
    **{f"blocks.{k}.dense": 2 + k % 2 for k in range(20)},
}  # fmt: skip


def job(**model: Any) -> dict[str, Any]:
    loaded = {"weight_bytes": 2_500_000, "bits_per_weight": 4.25, "details": {}} | model
    row = {
        "perplexity": 12.0, "perplexity_low": 11.0, "perplexity_high": 13.0, "quality_loss": 0.034, "quality_loss_ci95_low": 0.03,
        "quality_loss_ci95_high": 0.038, "token_agreement": 0.91, "mean_kl": 0.0123, "dequantization_share_decode": 0.6,
        "quality_note": "a reason",
    }  # fmt: skip
    return {"result": {"row": row, "child": {"loaded_model": loaded}}}


def shown(capsys: pytest.CaptureFixture[str], record: dict[str, Any]) -> str:
    evidence.show(record)
    return " ".join(capsys.readouterr().out.split())


def test_layers_of_one_kind_stand_on_a_line_with_their_bits_in_order() -> None:
    assert plan_lines(PLAN) == [
        ("layers.*.attention", "3 2"), ("layers.*.mlp", "4 8"), ("blocks.*.dense", "10 x 2, 10 x 3"),
    ]  # fmt: skip


def test_a_job_shows_how_its_weights_are_stored_and_by_which_plan(capsys: pytest.CaptureFixture[str]) -> None:
    quantized = {
        "layers": {"UniformLinear": 8}, "seconds": 2.5, "disk_bytes": 4_000_000,
        "facts": {
            "plan": PLAN, "mean_bits": 3.5, "plan_bytes": 1_000_000, "budget_bytes": 1_100_000,
            "calibration": {"text": "shipped", "tokens": 1024, "digest": "d"},
            "training": {"text": "ours.txt", "tokens": 5000, "steps": 100, "learning_rate": 0.0001},
        },
    }  # fmt: skip
    said = shown(capsys, job(details={"quantization": quantized}))
    for part in ("2.5 MB, 4.25 bits each", "8 UniformLinear", "2.5 s", "3.5 bits on average, 1 MB of 1.1 MB allowed",
                 "shipped, 1,024 tokens", "ours.txt, 5,000 tokens, 100 steps, learning rate 0.0001", "layers.*.mlp 4 8"):  # fmt: skip
        assert part in said


def test_a_job_shows_its_quality_with_intervals(capsys: pytest.CaptureFixture[str]) -> None:
    quality = {
        "agreement": {"reference": "lab/m fp32"},
        "tasks": [{"task": "riddles", "metric": "acc", "value": 0.75}],
    }
    said = shown(capsys, job(quality=quality))
    for part in ("12 (11 to 13)", "+3.40% (+3.00% to +3.80%)", "91.0% of tokens, mean KL 0.0123 nats, with lab/m fp32",
                 "riddles acc 0.75", "60% of decoding time", "a reason"):  # fmt: skip
        assert part in said


def test_a_job_that_was_not_measured_shows_nothing_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(capsys, {"result": None}) == ""
