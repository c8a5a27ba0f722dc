from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from effillm_server.analysis.dialects import DIALECTS, dialect
from effillm_server.errors import BadInput
from effillm_server.lifecycle import JobState
from effillm_server.records import ResultRecord
from tests.support.results import cell, job, result, sample, timeline

TTFT = [0.10, 0.12, 0.11, 0.13, 0.10]
GAPS = [[0.02, 0.03, 0.04], [0.02, 0.02, 0.03], [0.03, 0.03, 0.03], [0.02, 0.04, 0.03], [0.02, 0.03, 0.03]]
E2E = [t + sum(g) for t, g in zip(TTFT, GAPS, strict=True)]
TPOT = [sum(g) / 3 for g in GAPS]
RECORD = result(
    [sample("measured", i, timeline(t, g)) for i, (t, g) in enumerate(zip(TTFT, GAPS, strict=True))]
    + [sample("ttft", i, timeline(0.1, [])) for i in range(5)]
)


def numbers(name: str) -> dict[str, Any]:
    return {number["name"]: number["value"] for number in dialect(name, RECORD)}


def test_vllm_tells_tpot_per_request_from_the_pooled_itl() -> None:
    got = numbers("vllm")
    assert got["mean_tpot_ms"] == pytest.approx(1e3 * np.mean(TPOT))
    assert got["p99_itl_ms"] == pytest.approx(1e3 * np.percentile(np.ravel(GAPS), 99))
    assert got["output_throughput"] == pytest.approx(5 * 2 * 4 / sum(E2E))
    assert got["total_token_throughput"] == pytest.approx(5 * (2 * 4 + 256) / sum(E2E))
    assert got["request_throughput"] == pytest.approx(10 / sum(E2E))


def test_aiperf_calls_inter_token_latency_what_vllm_calls_tpot() -> None:
    assert numbers("aiperf")["inter_token_latency_avg"] == pytest.approx(numbers("vllm")["mean_tpot_ms"])
    assert numbers("aiperf")["time_to_second_token_avg"] == pytest.approx(1e3 * np.mean([g[0] for g in GAPS]))


def test_guidellm_includes_the_first_token_in_its_time_per_output_token() -> None:
    assert numbers("guidellm")["mean_time_per_output_token_ms"] == pytest.approx(1e3 * np.mean(E2E) / 4)
    assert numbers("guidellm")["mean_inter_token_latency_ms"] == pytest.approx(1e3 * np.mean(TPOT))


def test_llama_bench_separates_prompt_processing_from_generation_and_names_the_depth() -> None:
    got = numbers("llama-bench")
    assert got["pp128 avg_ts"] == pytest.approx(2560)
    assert got["tg3 @ d129 avg_ts"] == pytest.approx(np.mean([2 / value for value in TPOT]))


def test_mlperf_reports_seconds_and_percentiles() -> None:
    got = numbers("mlperf")
    assert got["first_token_latency_p99"] == pytest.approx(np.percentile(TTFT, 99))
    assert got["time_per_output_token_mean"] == pytest.approx(np.mean(TPOT))


@pytest.mark.parametrize("name", DIALECTS)
def test_every_number_carries_its_dialect_unit_and_definition(name: str) -> None:
    for number in dialect(name, RECORD):
        assert number["dialect"] == name and number["unit"] and len(number["definition"]) > 10
    assert len(numbers(name)) == len(dialect(name, RECORD))


def test_a_job_without_samples_has_no_numbers_and_an_unknown_dialect_is_refused() -> None:
    assert dialect("vllm", ResultRecord(job=job(cell(), JobState.FAILED))) == []
    with pytest.raises(BadInput, match="no dialect 'vlm'; there are vllm"):
        dialect("vlm", RECORD)
