"""Results of a sweep: `results`, and `jobs` and `job`, which say where everything is."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from itertools import islice
from pathlib import Path
from typing import Annotated

import typer

from effillm_server.cli import tables
from effillm_server.cli.client import Client
from effillm_server.cli.options import AsJson, JobId, SweepId, client, replacing
from effillm_server.cli.render import console, print_json, say
from effillm_server.errors import BadInput
from effillm_server.lifecycle import JobState


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
    as_json: AsJson = False,
) -> None:
    """Show or save the result rows of a sweep."""
    form = Format.JSON if as_json else form
    server = client(context)
    sweep_id = server.sweep_id(sweep)
    if frontier:
        show_frontier(server, sweep_id, form, output)
    elif form is Format.TABLE:
        if output is not None:
            raise BadInput("a table goes to the terminal only: add --format csv, json or parquet", field="format")
        tables.results(server.get(f"/v1/sweeps/{sweep_id}/results", format="json"))
    elif output is not None:
        export(server, sweep_id, form, output)
        say(f"wrote {output}")
    elif form is Format.PARQUET and console().is_terminal:
        raise BadInput("Parquet is not for reading on a terminal: name a file with -o FILE", field="output")
    else:
        server.download(f"/v1/sweeps/{sweep_id}/results", sys.stdout.buffer, format=str(form))
        sys.stdout.buffer.flush()


def export(server: Client, sweep_id: str, form: Format, file: Path) -> None:
    """Saves the rows of a sweep; the file is there when it is complete."""
    with replacing(file) as stream:
        server.download(f"/v1/sweeps/{sweep_id}/results", stream, format=str(form))


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
