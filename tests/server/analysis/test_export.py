from __future__ import annotations

import csv
import io
import json

import pyarrow.parquet as pq
import pytest

from effillm_server.analysis.export import csv_cell, to_csv, to_json, to_parquet
from effillm_server.analysis.rows import COLUMNS, row
from effillm_server.lifecycle import JobState
from effillm_server.records import ResultRecord
from tests.support.results import cell, job, result, sample, timeline

ROWS = [
    row(result([sample("measured", i, timeline(0.1 + i / 100, [0.02, 0.03, 0.04])) for i in range(6)])),
    row(ResultRecord(job=job(cell(), JobState.FAILED, reason="crashed", message="=HYPERLINK(1)"))),
]


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
def test_text_that_a_spreadsheet_would_run_is_prefixed(start: str) -> None:
    assert csv_cell(start + "1+1") == "'" + start + "1+1"


def test_numbers_are_never_prefixed_and_keep_every_digit() -> None:
    assert csv_cell(-0.1) == "-0.1"
    assert csv_cell(0.1 + 0.2) == "0.30000000000000004"
    assert [csv_cell(value) for value in (None, True, False, 7)] == ["", "true", "false", "7"]


def test_a_list_whose_first_entry_looks_like_a_formula_is_prefixed() -> None:
    assert csv_cell(["=1", "b"]) == "'=1; b"


def test_csv_has_the_columns_of_the_row_and_survives_a_round_trip() -> None:
    stream = io.StringIO()
    to_csv(ROWS, stream)
    read = list(csv.DictReader(io.StringIO(stream.getvalue())))
    assert list(read[0]) == list(COLUMNS)
    assert float(read[0]["throughput_tok_s_mean"]) == ROWS[0]["throughput_tok_s_mean"]
    assert read[1]["message"] == "'=HYPERLINK(1)"


def test_json_holds_the_same_names_and_values() -> None:
    stream = io.StringIO()
    to_json(ROWS, stream)
    assert json.loads(stream.getvalue()) == ROWS


def test_no_rows_are_an_empty_json_array_and_a_csv_header() -> None:
    stream, table = io.StringIO(), io.StringIO()
    to_json([], stream)
    to_csv([], table)
    assert json.loads(stream.getvalue()) == []
    assert table.getvalue().strip() == ",".join(COLUMNS)


def test_parquet_types_every_column_also_where_all_of_it_is_empty() -> None:
    stream = io.BytesIO()
    to_parquet(ROWS, stream)
    table = pq.read_table(io.BytesIO(stream.getvalue()))
    assert table.column_names == list(COLUMNS)
    assert str(table.schema.field("vram_peak_bytes").type) == "int64"
    assert table.to_pylist() == ROWS
