from __future__ import annotations

import json
from typing import Any

import pytest

from effillm_server.analysis import Facts, analyse
from effillm_server.analysis.claims import CONFIRMED, REFUTED, UNDECIDED, Evidence, overall
from tests.support.sweeps import SIZES, Grid, Laws, Noise, invent

FACTS = Facts(parameters=SIZES, noise_floor=0.02)
QUIET = Noise(within=0.004)
BATCHES = (1, 2, 4, 8, 16, 32)
LENGTHS = (128, 256, 512, 1024, 2048, 4096)


def claim(name: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    return next(c for c in analyse(rows, FACTS)["claims"] if c["name"] == name)


def with_speed(rows: list[dict[str, Any]], precision: str, factor: float) -> list[dict[str, Any]]:
    """`precision` runs at `factor` times the fp16 speed of its cell."""
    base = {(r["model"], r["batch_size"]): r["throughput_tok_s_mean"] for r in rows if r["quantization"] == "fp16"}
    return [
        {**r, "throughput_tok_s_mean": base[r["model"], r["batch_size"]] * factor}
        if r["quantization"] == precision
        else r
        for r in rows
    ]


@pytest.mark.parametrize(
    ("name", "laws", "grid", "verdict"),
    [
        ("delta", Laws(delta=0.5), Grid(models=tuple(SIZES)), CONFIRMED),
        ("delta", Laws(delta=0.9), Grid(models=tuple(SIZES)), REFUTED),
        ("sublinear-batch", Laws(beta=0.8), Grid(batch_size=BATCHES), CONFIRMED),
        ("sublinear-batch", Laws(beta=1.2), Grid(batch_size=BATCHES), REFUTED),
        ("mu", Laws(mu=0.35), Grid(sequence_length=LENGTHS), CONFIRMED),
        ("mu", Laws(mu=0.05), Grid(sequence_length=LENGTHS), REFUTED),
        ("phi", Laws(phi=0.35), Grid(batch_size=BATCHES), CONFIRMED),
        ("phi", Laws(phi=0.9), Grid(batch_size=BATCHES), REFUTED),
        ("omega", Laws(omega=0.75, kappa_s=0.001), Grid(sequence_length=LENGTHS), CONFIRMED),
        ("omega", Laws(omega=1.5, kappa_s=0.001), Grid(sequence_length=LENGTHS), REFUTED),
        ("omega-above-phi", Laws(omega=0.9, phi=0.3), Grid(batch_size=BATCHES, sequence_length=LENGTHS), CONFIRMED),
        ("omega-above-phi", Laws(omega=0.4, phi=0.9), Grid(batch_size=BATCHES, sequence_length=LENGTHS), REFUTED),
        (
            "batch-and-sequence",
            Laws(beta_slope=-0.05),
            Grid(batch_size=BATCHES, sequence_length=LENGTHS[:3]),
            CONFIRMED,
        ),
        ("batch-and-sequence", Laws(beta_slope=0.03), Grid(batch_size=BATCHES, sequence_length=LENGTHS[:3]), REFUTED),
        ("ttft-linear", Laws(), Grid(models=tuple(SIZES)), CONFIRMED),
        ("batch-one-latency", Laws(phi=0.4), Grid(batch_size=BATCHES), CONFIRMED),
        ("memory-per-parameter", Laws(), Grid(models=tuple(SIZES), quantization=("fp32", "fp16")), CONFIRMED),
        ("b-opt", Laws(beta=0.8), Grid(batch_size=BATCHES), REFUTED),
        ("peak-batch", Laws(beta=0.8), Grid(batch_size=BATCHES), UNDECIDED),
    ],
)
def test_a_claim_is_judged_by_the_law_the_rows_follow(name: str, laws: Laws, grid: Grid, verdict: str) -> None:
    found = claim(name, invent(grid, laws, QUIET))
    assert found["verdict"] == verdict
    assert found["summary"].startswith(verdict) and found["evidence"][0]["jobs"]


@pytest.mark.parametrize(
    ("name", "precision", "factor", "verdict"),
    [
        ("int8-speed-text", "int8", 0.5, REFUTED),
        ("int4-speed", "int4", 0.8, CONFIRMED),
        ("int4-speed", "int4", 0.3, REFUTED),
        ("gptq-int4", "gptq", 1.5, CONFIRMED),
        ("gptq-int4", "gptq", 0.4, REFUTED),
        ("gptq-int8", "gptq", 0.97, CONFIRMED),
        ("fp16-fastest", "int8", 1.4, REFUTED),
    ],
)
def test_claims_about_precisions_follow_the_measured_ratios(
    name: str, precision: str, factor: float, verdict: str
) -> None:
    rows = invent(Grid(quantization=("fp16", "int8", "int4", "gptq")), noise=QUIET)
    assert claim(name, with_speed(rows, precision, factor))["verdict"] == verdict


def gptq_rows(label: str, **columns: Any) -> list[dict[str, Any]]:
    """fp16, int8, int4 and a GPTQ of this label at 1.5 times the speed of fp16."""
    rows = with_speed(invent(Grid(quantization=("fp16", "int8", "int4", "gptq")), noise=QUIET), "gptq", 1.5)
    return [{**row, "quantization": label, **columns} if row["quantization"] == "gptq" else row for row in rows]


@pytest.mark.parametrize("label", ["gptq", "gptq-b4-g128", "gptq-b4-g64-act", "gptq-b4-gall@texts/ours.txt"])
def test_four_bit_gptq_counts_by_any_label(label: str) -> None:
    found = claim("gptq-int4", gptq_rows(label))
    assert found["verdict"] == CONFIRMED and found["evidence"][0]["text"].startswith(f"{label} runs at 1.8")
    assert claim("gptq-int8", gptq_rows(label))["verdict"] == REFUTED


@pytest.mark.parametrize(
    ("label", "columns"), [("gptq-b8-g128", {}), ("gptq-b3-g128", {}), ("gptq", {"theoretical_bits": 3.0})]
)
def test_gptq_of_other_bits_does_not_count(label: str, columns: dict[str, Any]) -> None:
    assert claim("gptq-int4", gptq_rows(label, **columns))["evidence"] == []


def test_int8_is_a_good_default_unless_something_is_faster_and_smaller() -> None:
    rows = invent(Grid(quantization=("fp16", "int8", "int4")), noise=QUIET)
    assert claim("int8-default", rows)["verdict"] == CONFIRMED
    assert claim("int8-default", with_speed(rows, "int8", 0.3))["verdict"] == REFUTED


def test_memory_claims_are_held_against_what_the_bits_say() -> None:
    rows = invent(Grid(quantization=("fp16", "int8"), models=("EleutherAI/pythia-1.4b",)), Laws(overhead_gb=0.0), QUIET)
    assert claim("int8-memory", rows)["verdict"] == CONFIRMED
    heavy = invent(Grid(quantization=("fp16", "int8")), Laws(overhead_gb=1.0), QUIET)
    refuted = claim("int8-memory", heavy)
    assert refuted["verdict"] == REFUTED
    assert (
        "int8 takes 10% less peak memory than fp16 (its bits say 50% less; weights alone 50% less) for"
        in refuted["summary"]
    )


def test_larger_models_scale_better_when_eta_grows_with_size() -> None:
    rows = invent(Grid(models=tuple(SIZES), batch_size=(1, 8)), noise=Noise(within=0.0))
    for row in rows:
        if row["batch_size"] == 8:
            row["throughput_tok_s_mean"] *= (SIZES[row["model"]] / 1e9) ** 0.2
    assert claim("eta-by-size", rows)["verdict"] == CONFIRMED


def test_sockets_are_compared_where_the_fingerprint_counts_them() -> None:
    rows = invent(Grid(repeats=2), noise=Noise(within=0.0))
    for row, sockets in zip(rows, (1, 2), strict=True):
        row["processor_sockets"] = sockets
    rows[1]["throughput_tok_s_mean"] *= 1.7
    assert claim("sockets", rows)["verdict"] == CONFIRMED


def test_a_claim_the_rows_cannot_judge_is_undecided_and_says_what_it_needs() -> None:
    found = claim("gptq-int4", invent(Grid()))
    assert found["verdict"] == UNDECIDED and found["needs"] == "one model at 4-bit gptq and int4"
    assert found["summary"] == "undecided: needs one model at 4-bit gptq and int4"


@pytest.mark.parametrize(
    ("confirmed", "refuted", "undecided", "verdict"),
    [
        (3, 0, 2, CONFIRMED),
        (3, 0, 4, UNDECIDED),
        (9, 1, 0, CONFIRMED),
        (2, 1, 0, UNDECIDED),
        (0, 2, 1, REFUTED),
        (0, 0, 3, UNDECIDED),
    ],
)
def test_the_overall_verdict_follows_the_stated_rule(
    confirmed: int, refuted: int, undecided: int, verdict: str
) -> None:
    slices = [CONFIRMED] * confirmed + [REFUTED] * refuted + [UNDECIDED] * undecided
    assert overall([Evidence("", "cpu", v, "") for v in slices]) == verdict


def test_the_analysis_is_json_and_its_findings_rest_on_named_jobs() -> None:
    rows = invent(
        Grid(models=tuple(SIZES)[:4], quantization=("fp32", "int8"), batch_size=BATCHES[:4]), noise=Noise(0.01)
    )
    found = json.loads(json.dumps(analyse(rows, FACTS), allow_nan=False))
    jobs = {row["job"] for row in rows}
    assert found["findings"][0]["sentence"].startswith("Highest throughput on cpu:")
    assert all(set(f["jobs"]) <= jobs and f["jobs"] for f in found["findings"])
    assert found["summary"]["used"] == len(rows) and found["pareto"]


@pytest.mark.parametrize("rows", [[], invent(Grid(fixed={"verdict": "invalid"}))], ids=["no rows", "only invalid rows"])
def test_without_a_usable_row_the_analysis_is_empty_and_says_so(rows: list[dict[str, Any]]) -> None:
    found = analyse(rows, FACTS)
    assert found["summary"]["remark"].startswith("no valid measured row to analyse")
    assert found["fits"] == [] and found["findings"] == []
    assert {c["verdict"] for c in found["claims"]} == {UNDECIDED}


def test_simulated_rows_do_not_touch_the_analysis_of_measured_ones() -> None:
    rows = invent(Grid(batch_size=BATCHES))
    fakes = [{**row, "job": row["job"] + 100, "simulated": True, "throughput_tok_s_mean": 1e9} for row in rows]
    clean, mixed = analyse(rows, FACTS), analyse(rows + fakes, FACTS)
    assert mixed["fits"] == clean["fits"]
    assert mixed["summary"]["left_out"]["simulated"] == len(fakes)


def test_models_the_catalog_does_not_know_are_sized_by_their_rows() -> None:
    rows = invent(Grid(models=tuple(SIZES)))
    assert any(fit["law"] == "throughput-vs-size" for fit in analyse(rows, Facts())["fits"])
    assert Facts.from_catalog().parameters["facebook/opt-125m"] == 125_239_296
