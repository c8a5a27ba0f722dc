from __future__ import annotations

from typing import Any

import pytest

from effillm_server.cli import evidence
from effillm_server.cli.evidence import MOST_KINDS, layer_lines, plan_lines

PLAN = {
    "layers.0.attention": 3, "layers.0.mlp": 4, "layers.1.attention": 2, "layers.1.mlp": 8,
    **{f"blocks.{k}.dense": 2 + k % 2 for k in range(20)},
}  # fmt: skip


BESIDE = {
    "unquantized_partner": "fp32", "quantization_efficiency": 0.52, "quantization_efficiency_ci95_low": 0.46,
    "quantization_efficiency_ci95_high": 0.59, "memory_reduction_measured": -0.07, "mbu_decode": 0.11, "mfu_prefill": 0.03,
    "quantization_reason": "int8 is slower than fp32 here: it unpacks",
}  # fmt: skip


def job(**model: Any) -> dict[str, Any]:
    loaded = {"weight_bytes": 2_500_000, "bits_per_weight": 4.25, "details": {}} | model
    row = {
        "perplexity": 12.0, "perplexity_low": 11.0, "perplexity_high": 13.0, "quality_loss": 0.034, "quality_loss_ci95_low": 0.03,
        "quality_loss_ci95_high": 0.038, "token_agreement": 0.91, "mean_kl": 0.0123, "dequantization_share_decode": 0.6,
        "quality_note": "a reason", "tasks": ["riddles acc 0.75 ± 0.021"],
    }  # fmt: skip
    return {"result": {"row": row | BESIDE, "child": {"loaded_model": loaded}}}


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
        "shares": {
            "prefill_dequantization": 0.08, "decode_dequantization": 0.6,
            "decode_operations": {"aten::mm": 0.2, "bitsandbytes::dequantize_4bit": 0.6, **dict.fromkeys("abcd", 0.01)},
        },
    }  # fmt: skip
    said = shown(capsys, job(quality=quality))
    for part in ("12 (11 to 13)", "+3.40% (+3.00% to +3.80%)", "91.0% of tokens, mean KL 0.0123 nats, with lab/m fp32",
                 "riddles acc 0.75 ± 0.021", "60% of decoding time, 8% of prefill", "a reason",
                 "bitsandbytes::dequantize_4bit 60%, aten::mm 20%, a 1%, b 1%, c 1%"):  # fmt: skip
        assert part in said


def test_a_job_shows_which_layers_are_quantized_by_name_and_by_which_version(
    capsys: pytest.CaptureFixture[str],
) -> None:
    quantized = {
        "modules": {"layers.*.attention": 6, "layers.*.mlp": 12}, "kept": {"head": 1},
        "facts": {"library": "gptqmodel 5.6.2", "made": "published"},
    }  # fmt: skip
    said = shown(capsys, job(details={"quantization": quantized}))
    for part in ("layers count stored", "layers.*.attention 6 quantized", "layers.*.mlp 12 quantized", "head 1 as it was",
                 "quantized by gptqmodel 5.6.2, a published checkpoint"):  # fmt: skip
        assert part in said


def test_the_library_of_a_method_that_names_none_is_that_of_the_runtime_that_measured(
    capsys: pytest.CaptureFixture[str],
) -> None:
    record = job(details={"quantization": {"method": "int8", "layers": {"Linear8bitLt": 24}, "kept": {"head": 1}}})
    record["result"]["measurement"] = {"fingerprint": {"software": {"versions": {"bitsandbytes": "0.49.1"}}}}
    said = shown(capsys, record)
    assert "quantized by bitsandbytes 0.49.1" in said
    assert "as it was" not in said  # no layer is quantized by name, so none is told apart


def test_layers_that_a_plan_tells_of_are_not_told_twice_and_very_many_kinds_are_counted() -> None:
    plan = {"facts": {"plan": PLAN}, "modules": {"layers.*.mlp": 2, "blocks.*.dense": 20}, "kept": {"head": 1}}
    assert layer_lines(plan) == [("head", 1, "as it was")]
    many = {"modules": {f"kind_{number}": 1 for number in range(MOST_KINDS + 3)}}
    assert len(layer_lines(many)) == MOST_KINDS + 1
    assert layer_lines(many)[-1] == ("further kinds", 3, "")


def test_a_job_shows_speed_and_memory_against_its_partner_and_why(capsys: pytest.CaptureFixture[str]) -> None:
    said = shown(capsys, job())
    for part in ("0.52 (0.46 to 0.59) times that of fp32", "7% more than fp32", "11% of the memory bandwidth, decoding",
                 "3% of the matrix rate, prefill", "int8 is slower than fp32 here: it unpacks"):  # fmt: skip
        assert part in said


def test_a_job_that_was_not_measured_shows_nothing_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(capsys, {"result": None}) == ""
