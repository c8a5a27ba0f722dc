"""Routes of results: the flat rows of a sweep in three formats, and its frontier."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from enum import StrEnum
from itertools import chain
from typing import IO, Annotated, Any, TextIO, cast

from fastapi import APIRouter, Query
from starlette.responses import StreamingResponse

from effillm_server.analysis import dialects, export
from effillm_server.analysis.dialects import Dialect
from effillm_server.analysis.rows import COLUMN_TYPES
from effillm_server.api import examples
from effillm_server.api.auth import Reader
from effillm_server.api.documented import problems, raw
from effillm_server.api.partners import MAX_JOBS, joined
from effillm_server.api.pipe import Sink, chunks_of
from effillm_server.api.rows import Asked, Rows, dialect_lines
from effillm_server.api.services import Served, SweepId, sweep_of
from effillm_server.api.views import FrontierView, PageView
from effillm_server.ledger import queries

router = APIRouter(prefix="/v1/sweeps/{sweep_id}", tags=["results"])


class Format(StrEnum):
    JSON = "json"
    CSV = "csv"
    PARQUET = "parquet"


MEDIA_TYPES = {
    Format.JSON: "application/json",
    Format.CSV: "text/csv; charset=utf-8",
    Format.PARQUET: "application/vnd.apache.parquet",
}
Types = Mapping[str, type]
WRITERS: dict[Format, Callable[[Rows, Sink, Types], None]] = {
    Format.JSON: lambda rows, sink, types: export.to_json(rows, cast(TextIO, sink), tuple(types)),
    Format.CSV: lambda rows, sink, types: export.to_csv(rows, cast(TextIO, sink), tuple(types)),
    Format.PARQUET: lambda rows, sink, types: export.to_parquet(rows, cast("IO[bytes]", sink), tuple(types), types),
}

_JSON_NAMES = {str: "string", int: "integer", float: "number", bool: "boolean", list: "array"}


def _schema(types: Types) -> dict[str, Any]:
    properties = {name: {"type": [_JSON_NAMES[kind], "null"]} for name, kind in types.items()}
    return {"type": "array", "items": {"type": "object", "properties": properties, "additionalProperties": False}}


ROWS_SCHEMA: dict[str, Any] = {"anyOf": [_schema(COLUMN_TYPES), _schema(dialects.COLUMN_TYPES)]}


@router.get(
    "/results",
    summary="The result rows of a sweep",
    response_class=StreamingResponse,
    responses={
        **problems(404),
        200: {
            "description": "one row per job, in the sweep's order; the same names in every format. "
            "`quantization_efficiency`, `memory_reduction_measured` and `quantization_reason` are against `unquantized_partner`, the "
            f"same cell of the same sweep; empty in sweeps of more than {MAX_JOBS:,} jobs. "
            "With `dialect`: one line per number, with its unit and definition",
            "content": {
                **raw("application/json", [examples.ROW], "", ROWS_SCHEMA)["content"],
                **raw("text/csv", examples.ROWS_CSV, "")["content"],
                **raw("application/vnd.apache.parquet", "PAR1", "", {"type": "string", "format": "binary"})["content"],
            },
        },
    },
)
def rows_of(
    served: Served,
    who: Reader,
    sweep_id: SweepId,
    filters: Asked,
    format: Annotated[Format, Query(description="json, csv or parquet")] = Format.JSON,
    dialect: Annotated[
        Dialect | None,
        Query(description="instead of rows, the numbers as another tool names and defines them, a line each"),
    ] = None,
) -> StreamingResponse:
    """Streamed while it is read, so that a sweep of any size needs little memory on either side."""
    with served.reading() as connection:
        sweep = sweep_of(connection, sweep_id, who.viewer)
    if dialect is None:
        rows, types, name = joined(served, sweep, filters), COLUMN_TYPES, sweep_id
    else:
        rows, types = dialect_lines(served, sweep_id, filters, dialect), dialects.COLUMN_TYPES
        name = f"{sweep_id}-{dialect}"
    chunks = chunks_of(lambda sink: WRITERS[format](rows, sink, types))
    # The first chunk before the status line: a database that is away is still told as a problem.
    first = next(chunks, b"")
    headers = {"Content-Disposition": f'attachment; filename="{name}.{format}"'}
    return StreamingResponse(_closing(first, chunks), headers=headers, media_type=MEDIA_TYPES[format])


@router.get("/frontier", summary="The largest batch and sequence that run", responses=problems(404))
def frontier(served: Served, who: Reader, sweep_id: SweepId) -> PageView[FrontierView]:
    """Per model, quantization and device class: what ran, and the smallest cell that did not."""
    with served.reading() as connection:
        sweep_of(connection, sweep_id, who.viewer)
        found = queries.frontier(connection, sweep_id)
    return PageView(items=[FrontierView.of(entry) for entry in found])


def _closing(first: bytes, chunks: Iterator[bytes]) -> Iterator[bytes]:
    try:
        yield from chain((first,), chunks)
    finally:
        # A client that left early: the thread that reads the database ends with it.
        cast(Any, chunks).close()
