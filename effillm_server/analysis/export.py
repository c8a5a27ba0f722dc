"""Rows to files: CSV, JSON, Parquet. The names are those of COLUMNS everywhere."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import IO, Any, TextIO

from effillm_server.analysis.rows import COLUMN_TYPES, COLUMNS

# A spreadsheet runs a cell that begins like this as a formula; tab and carriage return hide one behind white space.
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")
LIST_SEPARATOR = "; "
PARQUET_BATCH = 10_000

Row = Mapping[str, Any]


def to_csv(rows: Iterable[Row], stream: TextIO, columns: Sequence[str] = COLUMNS) -> None:
    """Write `rows` as CSV with a header line. Text that a spreadsheet would run gets a leading apostrophe."""
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow([csv_cell(row.get(column)) for column in columns])


def csv_cell(value: Any) -> str:
    """Text of one cell: empty for None, the shortest exact digits for numbers, guarded for everything else."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    text = LIST_SEPARATOR.join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return "'" + text if text.startswith(FORMULA_STARTS) else text


def to_json(rows: Iterable[Row], stream: TextIO, columns: Sequence[str] = COLUMNS) -> None:
    """Write `rows` as a JSON array of objects, one object a line. Raises ValueError on NaN or infinity."""
    stream.write("[")
    for number, row in enumerate(rows):
        stream.write(",\n" if number else "\n")
        stream.write(json.dumps({column: row.get(column) for column in columns}, allow_nan=False))
    stream.write("\n]\n")


def to_parquet(
    rows: Iterable[Row],
    stream: IO[bytes],
    columns: Sequence[str] = COLUMNS,
    types: Mapping[str, type] = COLUMN_TYPES,
) -> None:
    """Write `rows` as Parquet; every column has its type (text where `types` has none) even where all of it is empty."""
    import pyarrow as pa  # large, and needed for this format only
    import pyarrow.parquet as pq

    arrow = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_(), list: pa.list_(pa.string())}
    schema = pa.schema([(column, arrow[types.get(column, str)]) for column in columns])
    batch: list[dict[str, Any]] = []
    with pq.ParquetWriter(stream, schema, compression="zstd") as writer:
        for row in rows:
            batch.append({column: row.get(column) for column in columns})
            if len(batch) == PARQUET_BATCH:
                writer.write_table(pa.Table.from_pylist(batch, schema=schema))
                batch = []
        if batch:
            writer.write_table(pa.Table.from_pylist(batch, schema=schema))
