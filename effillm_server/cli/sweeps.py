"""Commands about sweeps: submit, preview, watch, ls, cancel, retry."""

from __future__ import annotations

from itertools import islice
from typing import Annotated, Any

import typer

from effillm_server.cli import tables, watch
from effillm_server.cli.client import Client
from effillm_server.cli.options import AsJson, DefinitionFile, SweepId, client, read_definition
from effillm_server.cli.render import plain, print_json, say
from effillm_server.errors import BadInput


def submit(
    context: typer.Context,
    file: DefinitionFile,
    follow: Annotated[
        bool, typer.Option("--watch", help="Stay until the sweep is over, then show its results.")
    ] = False,
    idempotency_key: Annotated[
        str | None, typer.Option(help="The same key with the same definition gives the same sweep.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Submit a sweep."""
    server = client(context)
    sweep = server.submit(read_definition(file), idempotency_key=idempotency_key)
    if not follow:
        announce(sweep, as_json=as_json)
        return
    say(f"sweep {sweep['id']}: {sweep['total']} jobs")
    finish_watching(server, sweep["id"], as_json=as_json)


def preview(context: typer.Context, file: DefinitionFile, as_json: AsJson = False) -> None:
    """Count what a sweep would be, and what could not run; nothing is stored."""
    answer = client(context).preview(read_definition(file))
    print_json(answer) if as_json else tables.preview(answer)


def watch_sweep(context: typer.Context, sweep: SweepId = "latest", as_json: AsJson = False) -> None:
    """Follow a sweep until it is over, then show its results."""
    server = client(context)
    finish_watching(server, server.sweep_id(sweep), as_json=as_json)


def ls(
    context: typer.Context,
    limit: Annotated[int, typer.Option(help="At most so many, newest first.", min=1)] = 20,
    as_json: AsJson = False,
) -> None:
    """List sweeps, newest first."""
    found = list(islice(client(context).pages("/v1/sweeps", limit), limit))
    print_json(found) if as_json else tables.sweeps(found)


def cancel(
    context: typer.Context,
    sweep: Annotated[str | None, typer.Argument(metavar="[SWEEP]", help="Sweep to cancel.", show_default=False)] = None,
    job: Annotated[int | None, typer.Option(help="Cancel this job alone.", min=1, show_default=False)] = None,
    as_json: AsJson = False,
) -> None:
    """Cancel what a sweep has left to do, or one job."""
    change(context, "cancel", "cancelled", sweep, job, as_json=as_json)


def retry(
    context: typer.Context,
    sweep: Annotated[str | None, typer.Argument(metavar="[SWEEP]", help="Sweep to retry.", show_default=False)] = None,
    job: Annotated[int | None, typer.Option(help="Retry this job alone.", min=1, show_default=False)] = None,
    as_json: AsJson = False,
) -> None:
    """Put failed and cancelled jobs of a sweep back in line, or one job."""
    change(context, "retry", "put back in line", sweep, job, as_json=as_json)


def change(context: typer.Context, verb: str, done: str, sweep: str | None, job: int | None, *, as_json: bool) -> None:
    """POSTs `verb` to the one sweep or job that is named."""
    if (sweep is None) == (job is None):
        raise BadInput(f"name either a sweep (effillm {verb} SWEEP) or a job (effillm {verb} --job JOB)")
    server = client(context)
    if job is not None:
        answer = server.post(f"/v1/jobs/{job}/{verb}")
        text = f"job {job}: now {answer['state']}"
    else:
        answer = server.post(f"/v1/sweeps/{server.sweep_id(str(sweep))}/{verb}")
        said = answer.get("note") or f"{answer['changed']} jobs {done}"
        text = f"sweep {answer['sweep']['id']}: {said}; now {tables.tally(answer['sweep'])}"
    print_json(answer) if as_json else print(plain(text))


def announce(sweep: dict[str, Any], *, as_json: bool) -> None:
    """Says that a sweep is stored and what can be done with it."""
    if as_json:
        print_json(sweep)
        return
    print(plain(f"sweep {sweep['id']}: {sweep['total']} jobs, {tables.tally(sweep)}"))
    say(f"follow it: effillm watch {sweep['id']}")


def finish_watching(server: Client, sweep_id: str, *, as_json: bool) -> None:
    """Watches to the end, shows the results, and exits 1 unless every job got an answer."""
    try:
        sweep = watch.follow(server, sweep_id)
    except KeyboardInterrupt:
        say(f"the sweep goes on; look again with: effillm watch {sweep_id}")
        raise
    rows = server.get(f"/v1/sweeps/{sweep_id}/results", format="json")
    print_json(rows) if as_json else tables.results(rows)
    raise typer.Exit(watch.outcome(sweep))
