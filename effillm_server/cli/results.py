"""Results of a sweep: `results`, and `jobs` and `job`, which say where everything is."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice
from pathlib import Path
from typing import IO, Annotated, Any

import typer

from effillm_server.cli import insight_tables, tables
from effillm_server.cli.client import Client
from effillm_server.cli.options import AsJson, Filters, JobId, SweepId, client, replacing
from effillm_server.cli.render import console, print_json, say
from effillm_server.errors import BadInput
from effillm_server.lifecycle import JobState


class Stat(StrEnum):
    MEAN = "mean"
    MEDIAN = "median"
    STD = "std"
    CI95_LOW = "ci95_low"
    CI95_HIGH = "ci95_high"
    P50 = "p50"
    P90 = "p90"
    P95 = "p95"
    P99 = "p99"


class Format(StrEnum):
    TABLE = "table"
    CSV = "csv"
    JSON = "json"
    PARQUET = "parquet"


def results(
    context: typer.Context,
    sweep: SweepId = "latest",
    form: Annotated[Format, typer.Option("--format", help="How to write the rows.")] = Format.TABLE,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write instead of stdout.", show_default=False)
    ] = None,
    frontier: Annotated[
        bool, typer.Option("--frontier", help="Instead of rows: the largest batch and sequence that ran.")
    ] = False,
    filters: Filters = None,
    sort: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="Order by a column, or by the mean of a metric.", show_default=False),
    ] = None,
    descending: Annotated[bool, typer.Option("--descending", help="With --sort: the largest first.")] = False,
    stat: Annotated[
        Stat | None, typer.Option(help="In the table, this statistic of every metric.", show_default=False)
    ] = None,
    dialect: Annotated[
        str | None,
        typer.Option(
            metavar="TOOL",
            help="Instead of rows: the numbers as vllm, aiperf, guidellm, llama-bench or mlperf define them.",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show or save the result rows of a sweep."""
    form = Format.JSON if as_json else form
    _check(form, frontier=frontier, filtered=bool(filters), sort=sort, stat=stat, dialect=dialect)
    server = client(context)
    wanted = Wanted(server.sweep_id(sweep), tuple(filters or ()), sort, descending, dialect)
    if frontier:
        show_frontier(server, wanted.sweep_id, form, output)
    elif form is Format.TABLE:
        if output is not None:
            raise BadInput("a table goes to the terminal only: add --format csv, json or parquet", field="format")
        show_table(server, wanted, stat)
    elif output is not None:
        with replacing(output) as stream:
            write(server, wanted, form, stream)
        say(f"wrote {output}")
    elif form is Format.PARQUET and console().is_terminal:
        raise BadInput("Parquet is not for reading on a terminal: name a file with -o FILE", field="output")
    else:
        write(server, wanted, form, sys.stdout.buffer)
        sys.stdout.buffer.flush()


def _check(
    form: Format, *, frontier: bool, filtered: bool, sort: str | None, stat: Stat | None, dialect: str | None
) -> None:
    """Raises BadInput for options that contradict each other."""
    if stat is not None and form is not Format.TABLE:
        raise BadInput(f"{form} has every statistic in a column of its own: --stat is for the table", field="stat")
    if frontier and (filtered or sort or stat):
        raise BadInput("--frontier stands alone: it has no rows to filter or sort", field="frontier")
    if dialect is not None and (frontier or sort or stat):
        raise BadInput("--dialect has lines of its own: leave out --frontier, --sort and --stat", field="dialect")


@dataclass(frozen=True)
class Wanted:
    """Which rows of which sweep, in which order; by default all in the sweep's own."""

    sweep_id: str
    filters: tuple[str, ...] = ()
    sort: str | None = None
    descending: bool = False
    dialect: str | None = None


def export(server: Client, sweep_id: str, form: Format, file: Path) -> None:
    """Saves the rows of a sweep; the file is there when it is complete."""
    with replacing(file) as stream:
        write(server, Wanted(sweep_id), form, stream)


def write(server: Client, wanted: Wanted, form: Format, stream: IO[bytes]) -> None:
    """Writes the rows as they come; sorted ones have to be there first."""
    path, filters = f"/v1/sweeps/{wanted.sweep_id}/results", list(wanted.filters)
    if wanted.sort is None:
        server.download(path, stream, format=str(form), filter=filters, dialect=wanted.dialect)
        return
    from effillm_server.analysis import export as files

    rows = sorted_rows(server, wanted)
    if form is Format.PARQUET:
        files.to_parquet(rows, stream)
        return
    text = io.StringIO()
    (files.to_csv if form is Format.CSV else files.to_json)(rows, text)
    stream.write(text.getvalue().encode())


def sorted_rows(server: Client, wanted: Wanted) -> list[dict[str, Any]]:
    """The rows, all of them, in the order that is wanted."""
    path = f"/v1/sweeps/{wanted.sweep_id}/results"
    rows = server.get(path, format="json", filter=list(wanted.filters), dialect=wanted.dialect)
    if wanted.sort is None:
        return list(rows)
    return insight_tables.in_order(rows, wanted.sort, descending=wanted.descending)


def show_table(server: Client, wanted: Wanted, stat: Stat | None) -> None:
    """The rows as a table: the headline figures, one statistic of every metric, or the words of another tool."""
    rows = sorted_rows(server, wanted)
    if wanted.dialect is not None:
        tables.dialect(rows)
    elif stat is not None:
        insight_tables.statistics(rows, str(stat))
    else:
        tables.results(rows)


def show_frontier(server: Client, sweep_id: str, form: Format, output: Path | None) -> None:
    """The frontier as a table or as JSON."""
    if form not in (Format.TABLE, Format.JSON):
        raise BadInput(f"the frontier is shown as table or json, not as {form}", field="format")
    entries = server.get(f"/v1/sweeps/{sweep_id}/frontier")["items"]
    if output is not None:
        with replacing(output) as stream:
            stream.write((json.dumps(entries, indent=2) + "\n").encode())
        say(f"wrote {output}")
    elif form is Format.JSON:
        print_json(entries)
    else:
        tables.frontier(entries)


def jobs(
    context: typer.Context,
    sweep: SweepId = "latest",
    state: Annotated[JobState | None, typer.Option(help="Only jobs in this state.", show_default=False)] = None,
    limit: Annotated[int, typer.Option(help="At most so many.", min=1)] = 100,
    as_json: AsJson = False,
) -> None:
    """List the jobs of a sweep and why each is where it is."""
    server = client(context)
    wanted = None if state is None else str(state)
    pages = server.pages(f"/v1/sweeps/{server.sweep_id(sweep)}/jobs", limit, state=wanted)
    found = list(islice(pages, limit))
    print_json(found) if as_json else tables.jobs(found)


def job(context: typer.Context, number: JobId, as_json: AsJson = False) -> None:
    """Show one job: where it is and why, its attempts, the last lines of its log."""
    record = client(context).get(f"/v1/jobs/{number}")
    print_json(record) if as_json else tables.job(record)
