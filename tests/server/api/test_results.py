from __future__ import annotations

import csv
import io
from typing import Any

import pyarrow.parquet as pq
import pytest

from effillm_server.analysis import dialects
from effillm_server.analysis.rows import COLUMNS
from effillm_server.api import partners
from effillm_server.api import rows as pages_of_rows
from effillm_server.contract.outcome import Conditions, LoadedModel
from tests.support.api import Api, add_device, as_measured, finish, lease, measured


@pytest.fixture
def sweep_id(api: Api) -> str:
    """A sweep with one measured job, one that cannot run and three that wait; larger than a page of the export."""
    sweep = api.submit(batch_size=[1, 4], sequence_length=[128, 256], exclude=[])
    add_device(api.engine)
    held = lease(api.engine)
    finish(api.engine, held, measured(held))
    return str(sweep["id"])


@pytest.fixture(autouse=True)
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages_of_rows, "PAGE", 3)


def rows(api: Api, sweep_id: str) -> list[dict[str, Any]]:
    answer = api.http.get(f"/v1/sweeps/{sweep_id}/results")
    assert answer.headers["content-type"] == "application/json"
    return list(answer.json())


def test_json_has_a_row_per_job_in_order_with_every_column(api: Api, sweep_id: str) -> None:
    found = rows(api, sweep_id)
    assert [row["ordinal"] for row in found] == list(range(8))
    assert all(tuple(row) == COLUMNS for row in found)
    assert [row["state"] for row in found].count("measured") == 1


def test_the_row_is_computed_from_the_samples(api: Api, sweep_id: str) -> None:
    (row,) = [row for row in rows(api, sweep_id) if row["state"] == "measured"]
    # Two tokens in 30 ms per sequence of the batch, the first after 10 ms.
    assert row["throughput_tok_s_mean"] == pytest.approx(2 * row["batch_size"] / 0.03)
    assert row["ttft_s_mean"] == pytest.approx(0.01)
    assert row["iterations"] == 5


@pytest.fixture
def halved(api: Api) -> tuple[str, dict[str, int]]:
    """A sweep whose int8 takes twice as long as its fp32 in half the memory; its jobs by precision."""
    sweep = api.submit(batch_size=[1], sequence_length=[128], quantization=["fp32", "int8"])
    add_device(api.engine)
    jobs = {}
    for _ in range(2):
        held = lease(api.engine)
        is_int8 = held.cell.quantization == "int8"
        model = LoadedModel(
            parameters=100, weight_bytes=100 if is_int8 else 400, bits_per_weight=8 if is_int8 else 32, dtype="float32"
        )
        finish(api.engine, held, as_measured(held, 2.0 if is_int8 else 1.0, 10**8 if is_int8 else 2 * 10**8, model))
        jobs[held.cell.quantization] = held.job_id
    return str(sweep["id"]), jobs


def test_a_row_stands_beside_its_unquantized_partner_in_every_format_and_under_any_filter(
    api: Api, halved: tuple[str, dict[str, int]]
) -> None:
    sweep_id, jobs = halved
    of = {row["quantization"]: row for row in rows(api, sweep_id)}
    int8 = of["int8"]
    assert int8["unquantized_partner"] == "fp32" and int8["job"] == jobs["int8"]
    assert int8["quantization_efficiency"] == pytest.approx(0.5)
    assert int8["quantization_efficiency_ci95_low"] < 0.5 < int8["quantization_efficiency_ci95_high"]
    assert int8["memory_reduction_measured"] == pytest.approx(0.5)
    assert of["fp32"]["unquantized_partner"] is None and of["fp32"]["quantization_efficiency"] is None
    path = f"/v1/sweeps/{sweep_id}/results"
    # The filter leaves the partner out of the answer, not out of the numbers.
    assert api.http.get(path, params={"filter": "quantization=int8"}).json() == [int8]
    table = list(csv.DictReader(io.StringIO(api.http.get(path, params={"format": "csv"}).text)))
    assert [line["quantization_efficiency"] for line in table] == ["", repr(int8["quantization_efficiency"])]
    # The same numbers as in the analysis, and beside the job alone.
    (entry,) = api.http.get(f"/v1/sweeps/{sweep_id}/analysis").json()["quantization"]
    assert entry["efficiency"]["value"] == int8["quantization_efficiency"]
    assert api.http.get(f"/v1/jobs/{jobs['int8']}").json()["result"]["row"] == int8


def test_a_sweep_too_large_to_be_read_twice_keeps_its_rows_without_partners(
    api: Api, halved: tuple[str, dict[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partners, "MAX_JOBS", 1)
    assert [row["quantization_efficiency"] for row in rows(api, halved[0])] == [None, None]
    # One job's partner is looked for by itself.
    shown = api.http.get(f"/v1/jobs/{halved[1]['int8']}").json()["result"]["row"]
    assert shown["quantization_efficiency"] == pytest.approx(0.5)


def test_csv_has_the_same_names_and_values(api: Api, sweep_id: str) -> None:
    answer = api.http.get(f"/v1/sweeps/{sweep_id}/results", params={"format": "csv"})
    assert answer.headers["content-type"].startswith("text/csv")
    assert f'filename="{sweep_id}.csv"' in answer.headers["content-disposition"]
    table = list(csv.DictReader(io.StringIO(answer.text)))
    assert tuple(table[0]) == COLUMNS
    assert [int(line["job"]) for line in table] == [row["job"] for row in rows(api, sweep_id)]


def test_parquet_has_the_same_names_and_values(api: Api, sweep_id: str) -> None:
    answer = api.http.get(f"/v1/sweeps/{sweep_id}/results", params={"format": "parquet"})
    table = pq.read_table(io.BytesIO(answer.content))
    assert tuple(table.column_names) == COLUMNS
    assert table.column("job").to_pylist() == [row["job"] for row in rows(api, sweep_id)]


def test_a_format_that_does_not_exist_is_refused_naming_those_that_do(api: Api, sweep_id: str) -> None:
    answer = api.http.get(f"/v1/sweeps/{sweep_id}/results", params={"format": "xlsx"})
    assert answer.status_code == 422
    assert all(name in answer.json()["detail"] for name in ("'xlsx'", "json", "csv", "parquet"))


def test_a_database_that_goes_away_before_the_first_row_is_told_as_a_problem(
    api: Api, sweep_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sqlalchemy.exc import OperationalError

    def away(*_: object, **__: object) -> None:
        raise OperationalError("SELECT", None, Exception("server closed the connection"))

    monkeypatch.setattr(pages_of_rows.queries, "results", away)
    answer = api.http.get(f"/v1/sweeps/{sweep_id}/results")
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "2"
    assert "SELECT" not in answer.text


def test_the_frontier_names_the_largest_cells_that_ran(api: Api, sweep_id: str) -> None:
    (entry,) = api.http.get(f"/v1/sweeps/{sweep_id}/frontier").json()["items"]
    assert entry["model"] == "EleutherAI/pythia-70m"
    assert entry["hardware"] == "cpu"


@pytest.mark.parametrize("dialect", ["vllm", "aiperf", "guidellm", "llama-bench", "mlperf"])
def test_the_words_of_another_tool_come_a_line_each_with_their_meaning(api: Api, sweep_id: str, dialect: str) -> None:
    answer = api.http.get(f"/v1/sweeps/{sweep_id}/results", params={"dialect": dialect})
    lines = answer.json()
    assert f'filename="{sweep_id}-{dialect}.json"' in answer.headers["content-disposition"]
    assert lines and all(tuple(line) == tuple(dialects.COLUMN_TYPES) for line in lines)
    assert all(line["dialect"] == dialect and line["unit"] and line["definition"] for line in lines)
    # Only the measured job has numbers.
    assert len({line["job"] for line in lines}) == 1


def test_a_number_of_a_dialect_is_the_row_s_by_its_definition(api: Api, sweep_id: str) -> None:
    lines = api.http.get(f"/v1/sweeps/{sweep_id}/results", params={"dialect": "vllm"}).json()
    (row,) = [row for row in rows(api, sweep_id) if row["state"] == "measured"]
    (ttft,) = [line for line in lines if line["name"] == "mean_ttft_ms"]
    assert ttft["value"] == pytest.approx(1000 * row["ttft_in_run_s_mean"])


def test_a_dialect_has_the_same_lines_in_every_format_and_heeds_filters(api: Api, sweep_id: str) -> None:
    path, asked = f"/v1/sweeps/{sweep_id}/results", {"dialect": "mlperf"}
    lines = api.http.get(path, params=asked).json()
    table = list(csv.DictReader(io.StringIO(api.http.get(path, params=asked | {"format": "csv"}).text)))
    parquet = pq.read_table(io.BytesIO(api.http.get(path, params=asked | {"format": "parquet"}).content))
    assert [line["name"] for line in table] == [line["name"] for line in lines] == parquet.column("name").to_pylist()
    assert [float(line["value"]) for line in table] == parquet.column("value").to_pylist()
    other = {1: 4, 4: 1}[lines[0]["batch_size"]]
    assert api.http.get(path, params=asked | {"filter": f"batch_size={other}"}).json() == []


def test_an_unknown_dialect_is_refused_naming_those_that_exist(api: Api, sweep_id: str) -> None:
    answer = api.http.get(f"/v1/sweeps/{sweep_id}/results", params={"dialect": "esperanto"})
    assert answer.status_code == 422
    assert all(name in answer.json()["detail"] for name in dialects.DIALECTS)


def test_a_job_shows_raw_timestamps_memory_account_and_what_was_not_watched(api: Api) -> None:
    api.submit()
    add_device(api.engine)
    held = lease(api.engine)
    outcome = measured(held)
    memory = outcome.memory.model_copy(update={"account": {"weights_bytes": 5, "kv_cache_predicted_bytes": 7}})
    conditions = Conditions(watched={"others_cpus": 0.01}, not_watched={"processor_clock": "no cpufreq"})
    finish(api.engine, held, outcome.model_copy(update={"memory": memory, "conditions": conditions}))
    result = api.http.get(f"/v1/jobs/{held.job_id}").json()["result"]
    assert [tuple(sample["timestamps_ns"]) for sample in result["samples"]] == [
        s.timestamps_ns for s in outcome.samples
    ]
    assert result["measurement"]["memory"]["account"]["kv_cache_predicted_bytes"] == 7
    assert result["measurement"]["conditions"]["not_watched"] == {"processor_clock": "no cpufreq"}
