from __future__ import annotations

import csv
import io
from typing import Any

import pyarrow.parquet as pq
import pytest

from effillm_server.analysis.rows import COLUMNS
from effillm_server.api import rows as pages_of_rows
from tests.support.api import Api, add_device, finish, lease, measured


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
