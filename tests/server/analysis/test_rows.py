from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from effillm_server.analysis.rows import COLUMN_TYPES, COLUMNS, row, row_with_series
from effillm_server.contract.fingerprint import Fingerprint, Hardware, Processor, Software
from effillm_server.contract.outcome import (
    CellMemory,
    ChildRecord,
    LoadedModel,
    Measured,
    MemoryReading,
    Sample,
    StopReason,
    Verdict,
)
from effillm_server.lifecycle import JobState
from effillm_server.records import ResultRecord
from tests.support.results import cell, job, measurement, result, sample, timeline

TTFT = [0.10, 0.12, 0.11, 0.13, 0.10, 0.12]
GAPS = [
    [0.02, 0.03, 0.04],
    [0.02, 0.02, 0.03],
    [0.03, 0.03, 0.03],
    [0.02, 0.04, 0.03],
    [0.02, 0.03, 0.03],
    [0.02, 0.03, 0.05],
]


def full_record(**changes: object) -> ResultRecord:
    warmup = [sample("warmup", i, timeline(9.0, [9.0, 9.0, 9.0])) for i in range(3)]
    full = [sample("measured", i, timeline(t, g)) for i, (t, g) in enumerate(zip(TTFT, GAPS, strict=True))]
    first = [sample("ttft", i, timeline(t - 0.01, [])) for i, t in enumerate(TTFT)]
    memory = [sample("memory", 0, timeline(5.0, [5.0, 5.0, 5.0]))]
    return result(warmup + full + first + memory, **changes)


def test_the_columns_begin_with_the_names_of_the_published_row_in_order() -> None:
    metrics = [
        "throughput_tok_s",
        "ttft_s",
        "ttft_in_run_s",
        "tpot_s",
        "decode_tok_s",
        "prefill_tok_s",
        "per_instance_tok_s",
        "e2e_s",
    ]
    published = [
        "sweep",
        "job",
        "state",
        "reason",
        "verdict",
        "simulated",
        "model",
        "weights",
        "quantization",
        "dtype",
        "engine",
        "batch_size",
        "sequence_length",
        "workload",
        "generate_tokens",
        "hardware",
        "device",
        "fingerprint",
        "runtime",
        "repeat",
    ]
    published += [f"{m}_{s}" for m in metrics for s in ("mean", "median", "std", "ci95_low", "ci95_high")]
    published += [f"itl_s_p{p}" for p in (50, 90, 95, 99)]
    published += [
        f"{kind}_{s}_bytes" for kind in ("ram", "vram") for s in ("baseline", "loaded", "peak", "steady", "released")
    ]
    published += ["memory_efficiency_tok_s_per_gb", "load_s", "iterations", "warmup_iterations"]
    assert list(COLUMNS[: len(published)]) == published
    assert len(set(COLUMNS)) == len(COLUMNS)


def test_every_statistic_equals_its_closed_form_on_the_raw_timeline() -> None:
    got = row(full_record())
    throughput = np.array([4 * 2 / (t + sum(g)) for t, g in zip(TTFT, GAPS, strict=True)])
    low, high = stats.t.interval(0.95, 5, throughput.mean(), stats.sem(throughput))
    assert got["throughput_tok_s_mean"] == pytest.approx(throughput.mean())
    assert got["throughput_tok_s_median"] == pytest.approx(np.median(throughput))
    assert got["throughput_tok_s_std"] == pytest.approx(throughput.std(ddof=1))
    assert (got["throughput_tok_s_ci95_low"], got["throughput_tok_s_ci95_high"]) == pytest.approx((low, high))
    assert got["per_instance_tok_s_mean"] == pytest.approx(throughput.mean() / 2)
    assert got["ttft_in_run_s_mean"] == pytest.approx(np.mean(TTFT))
    assert got["tpot_s_mean"] == pytest.approx(np.mean([sum(g) / 3 for g in GAPS]))
    assert got["decode_tok_s_mean"] == pytest.approx(np.mean([3 * 2 / sum(g) for g in GAPS]))
    assert got["prefill_tok_s_mean"] == pytest.approx(np.mean([256 / t for t in TTFT]))
    assert got["e2e_s_median"] == pytest.approx(np.median([t + sum(g) for t, g in zip(TTFT, GAPS, strict=True)]))
    for level in (50, 90, 95, 99):
        assert got[f"itl_s_p{level}"] == pytest.approx(np.percentile(np.ravel(GAPS), level))
    assert (got["iterations"], got["warmup_iterations"], got["itl_samples"]) == (6, 3, 18)


def test_first_token_time_comes_from_iterations_that_generate_one_token_only() -> None:
    got = row(full_record())
    assert got["ttft_s_mean"] == pytest.approx(np.mean(TTFT) - 0.01)
    assert got["ttft_in_run_s_mean"] == pytest.approx(np.mean(TTFT))
    assert got["ttft_iterations"] == 6


def test_marked_outliers_leave_the_statistics_and_their_number_stands_beside() -> None:
    record = full_record()
    spike = sample("measured", 6, timeline(50.0, [1.0, 1.0, 1.0]), outlier=True)
    with_spike = ResultRecord(**{**vars(record), "samples": (*record.samples, spike)})
    clean, marked = row(record), row(with_spike)
    assert marked["throughput_tok_s_mean"] == clean["throughput_tok_s_mean"]
    assert marked["itl_s_p99"] == clean["itl_s_p99"]
    assert (clean["excluded_outliers"], marked["excluded_outliers"]) == (0, 1)
    assert (clean["iterations"], marked["iterations"]) == (6, 7)


def test_memory_columns_hold_the_five_stages_and_the_larger_phase_peak() -> None:
    got = row(full_record())
    stages = [got[f"ram_{s}_bytes"] for s in ("baseline", "loaded", "peak", "steady", "released")]
    assert stages == [300_000_000, 650_000_000, 1_000_000_000, 700_000_000, 310_000_000]
    assert got["vram_peak_bytes"] is None
    assert got["memory_efficiency_tok_s_per_gb"] == pytest.approx(got["throughput_tok_s_mean"] / 1.0)
    assert got["load_s"] == 1.5


def test_memory_efficiency_uses_device_memory_where_there_is_any() -> None:
    memory = {"peak_decode": {"vram_bytes": 2_000_000_000, "ram_peak_bytes": 9_000_000_000}}
    got = row(full_record(memory=memory))
    assert got["memory_efficiency_tok_s_per_gb"] == pytest.approx(got["throughput_tok_s_mean"] / 2.0)


def test_utilization_is_bytes_and_products_per_time_over_the_measured_ceiling() -> None:
    memory = {"account": {"kv_cache_predicted_bytes": 1_320_000}}
    got = row(full_record(memory=memory), {"copy_bytes_s": 1e11, "matmul_flop_s": {"float32": 1e12}})
    step = np.median([sum(g) / 3 for g in GAPS])
    cache = 1_320_000 * (128 + 2) / (128 + 4)
    assert got["mbu_decode"] == pytest.approx((500_957_184 - 6_297_600 + cache) / step / 1e11)
    assert got["mfu_decode"] == pytest.approx(2 * 123_543_552 * 2 / step / 1e12)
    # The output head multiplies the last token of each of the two prompts, everything else all 256.
    products = 2 * ((123_543_552 - 38_608_896) * 256 + 38_608_896 * 2)
    assert got["mfu_prefill"] == pytest.approx(products / np.median(TTFT) / 1e12)


def test_int8_products_have_the_ceiling_of_int8_only() -> None:
    rates = {"float32": 1e12, "int8": 4e12}
    reduced = full_record(of=cell(quantization="int8"))
    over_int8 = row(reduced, {"copy_bytes_s": 1e11, "matmul_flop_s": rates})
    over_float = row(full_record(), {"copy_bytes_s": 1e11, "matmul_flop_s": rates})
    assert over_int8["mfu_decode"] == pytest.approx(over_float["mfu_decode"] / 4)
    assert row(reduced, {"copy_bytes_s": 1e11, "matmul_flop_s": {"float32": 1e12}})["mfu_decode"] is None


def test_products_have_the_ceiling_of_the_type_that_the_worker_says_they_are_made_in() -> None:
    rates = {"copy_bytes_s": 1e11, "matmul_flop_s": {"float32": 1e12, "bfloat16": 4e12}}
    record = full_record(of=cell(quantization="int4"))
    assert record.child is not None

    def said(**more: str | None) -> dict[str, Any]:
        assert record.child is not None
        model = record.child["loaded_model"]
        model = model | {"details": model["details"] | more}
        return row(ResultRecord(**{**vars(record), "child": record.child | {"loaded_model": model}}), rates)

    over_float, over_bf16 = said(multiplied_in="float32"), said(multiplied_in="bfloat16")
    assert over_bf16["mfu_prefill"] == pytest.approx(over_float["mfu_prefill"] / 4)
    for unknown in (said(multiplied_in=None), said()):  # a row from before it was said may be of either
        assert unknown["mfu_prefill"] is None and unknown["mfu_decode"] is None
        assert unknown["mbu_decode"] == over_float["mbu_decode"]


def test_utilization_of_a_model_that_did_not_say_what_is_multiplied_is_unknown() -> None:
    record = full_record()
    assert record.child is not None
    model = {**record.child["loaded_model"], "details": {}}
    silent = ResultRecord(**{**vars(record), "child": {**record.child, "loaded_model": model}})
    got = row(silent, {"copy_bytes_s": 1e11, "matmul_flop_s": {"float32": 1e12}})
    assert (got["mbu_decode"], got["mfu_prefill"], got["mfu_decode"]) == (None, None, None)


def test_the_ceiling_recorded_with_the_measurement_goes_before_the_device_s_present_one() -> None:
    then, now = {"copy_bytes_s": 1e11}, {"copy_bytes_s": 5e11}
    recorded = full_record(details={"ceiling": then})
    assert row(recorded, now) == row(recorded, then)
    assert row(full_record(), now)["mbu_decode"] == pytest.approx(row(recorded)["mbu_decode"] / 5)


def test_energy_is_null_with_the_reason_or_divided_by_the_tokens_of_the_window() -> None:
    assert row(full_record())["energy_per_token_j"] is None
    assert row(full_record())["energy_source"] == "RAPL is not readable"
    got = row(full_record(energy_j=96.0, energy_source="NVML"))
    assert got["energy_per_token_j"] == pytest.approx(96.0 / (6 * 4 * 2 + 6 * 2))


def test_a_statistic_of_a_text_workload_covers_whole_passes_only() -> None:
    samples = [sample("measured", i, timeline(0.1 * (1 + i % 3), [0.1, 0.1, 0.1])) for i in range(7)]
    got = row(result(samples, prompts={"iterations_per_pass": 3}))
    assert got["iterations"] == 6
    assert got["ttft_in_run_s_mean"] == pytest.approx(0.2)


def test_a_job_without_a_measurement_is_a_row_that_says_why() -> None:
    infeasible = job(cell(engine="simulated"), JobState.INFEASIBLE, reason="context_window", message="2052 > 2048")
    got = row(ResultRecord(job=infeasible))
    assert set(got) == set(COLUMNS)
    assert (got["state"], got["reason"], got["message"]) == ("infeasible", "context_window", "2052 > 2048")
    assert got["throughput_tok_s_mean"] is None and got["simulated"] is True


def test_one_generated_token_leaves_the_decode_columns_empty() -> None:
    samples = [sample("measured", i, timeline(0.1, [])) for i in range(5)]
    got = row(result(samples, cell(generate_tokens=1)))
    assert got["throughput_tok_s_mean"] == pytest.approx(20)
    assert got["tpot_s_mean"] is None and got["decode_tok_s_mean"] is None and got["itl_s_p50"] is None


def test_values_have_the_type_their_column_declares() -> None:
    got = row(full_record(energy_j=5.0), {"copy_bytes_s": 1e11, "matmul_flop_s": {"float32": 1e12}})
    for column, kind in COLUMN_TYPES.items():
        assert got[column] is None or isinstance(got[column], kind), column
        assert not isinstance(got[column], float) or math.isfinite(got[column])


def test_the_series_behind_a_row_has_one_value_per_counted_iteration() -> None:
    assert len(row_with_series(full_record())["series"]["throughput_tok_s"]) == 6


def test_a_stored_child_record_takes_precedence_over_the_one_reported_with_the_cell() -> None:
    early = measurement()
    early["child"] = {**early["child"], "released": None}
    record = ResultRecord(job=job(cell()), measurement=early, child={"released": {"ram_bytes": 7}})
    assert row(record)["ram_released_bytes"] == 7


def test_a_measured_outcome_as_the_contract_writes_it_fills_the_row() -> None:
    reading = MemoryReading(ram_bytes=10, ram_peak_bytes=20, ram_source="VmHWM", vram_bytes=30, vram_reserved_bytes=40)
    child = ChildRecord(
        id="c", load_group="g", pid=1, started_at="2026-01-01T00:00:00Z", load_s=2.5, baseline=reading, loaded=reading, released=reading,
        cells_measured=1, loaded_model=LoadedModel(parameters=7, weight_bytes=28, bits_per_weight=32.0, dtype="float32"),
    )  # fmt: skip
    processor = Processor(model="x", architecture="x86_64", sockets=2, physical_cores=4, logical_cores=8, numa_nodes=2)
    outcome = Measured(
        samples=tuple(Sample.model_validate(s) for s in full_record().samples), stop_reason=StopReason.CONVERGED,
        memory=CellMemory(peak_prefill=reading, peak_decode=reading, steady=reading, account={"kv_cache_predicted_bytes": 5}),
        energy_j=3.0, energy_source="RAPL", verdict=Verdict.SUSPECT, reasons=("steal",), child=child,
        prompts={"lengths": [5, 7], "iterations_per_pass": 1},
        fingerprint=Fingerprint(
            hardware=Hardware(hardware_class="cpu", processor=processor, memory_bytes=1),
            software=Software(python="3.11", kernel="6", code_version="0"),
        ),
    )  # fmt: skip
    stored = outcome.model_dump(mode="json", exclude={"samples"})
    samples = tuple(sample.model_dump(mode="json") for sample in outcome.samples)
    got = row(ResultRecord(job=job(cell()), measurement=stored, samples=samples, child=stored["child"]))
    assert (got["verdict"], got["verdict_reasons"], got["stop_reason"]) == ("suspect", ["steal"], "converged")
    assert (
        got["ram_peak_bytes"],
        got["vram_peak_bytes"],
        got["vram_peak_reserved_bytes"],
        got["vram_steady_bytes"],
    ) == (20, 30, 40, 30)
    assert (got["load_s"], got["parameters"], got["weight_bytes"], got["processor_sockets"]) == (2.5, 7, 28, 2)
    assert (got["prompt_tokens_min"], got["prompt_tokens_mean"], got["prompt_tokens_max"]) == (5, 6.0, 7)
    assert got["throughput_tok_s_mean"] == row(full_record())["throughput_tok_s_mean"]
