"""Commands that start everything on this box: `up` until it is stopped, `run` for one sweep."""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer

from effillm_server.cli import local, tables, watch
from effillm_server.cli.client import Client
from effillm_server.cli.insight import save_report
from effillm_server.cli.local import Box, Plan
from effillm_server.cli.options import AsJson, DefinitionFile, read_definition, writable_folder
from effillm_server.cli.render import print_json, say
from effillm_server.cli.results import Format, export
from effillm_server.contract.parse import parse_definition
from effillm_server.contract.sweep import SweepDefinition
from effillm_server.errors import BadInput, EffillmError, Unavailable
from effillm_server.settings import Settings

CHECK_INTERVAL_S = 0.5
EXPORTS = (Format.CSV, Format.JSON, Format.PARQUET)
REPORT = "report.html"
# A child unloads its model and reports the last memory stage within seconds of its last result.
RELEASE_WITHIN_S = 30.0
RELEASE_POLL_S = 0.2

Declared = Annotated[
    list[str] | None,
    typer.Option("--declare", metavar="CLASS:COUNT", help="Declare devices instead of detecting them.", hidden=True),
]
WithCpu = Annotated[bool, typer.Option("--cpu", help="Offer the processors too although there is a GPU.")]


def up(
    port: Annotated[
        int | None,
        typer.Option(help="Port of the API; else EFFILLM_PORT, else 8750; 0 takes a free one.", min=0, max=65_535,
                     show_default=False),
    ] = None,
    host: Annotated[
        str | None,
        typer.Option(help="Address to listen on; else EFFILLM_HOST, else 127.0.0.1. Beyond this box, keys are asked for.",
                     show_default=False),
    ] = None,
    with_cpu: WithCpu = False,
    declare: Declared = None,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Start everything on this box and keep it running until Ctrl-C.

    What is pending when it stops goes on with the next `up` on the same EFFILLM_DATA_DIR.
    """
    given = {name: value for name, value in (("port", port), ("host", host)) if value is not None}
    settings = Settings.from_environment().model_copy(update=given)
    plan = Plan(settings, settings.data_dir.absolute() / "logs", tuple(declare or ()), with_cpu)
    with running(plan) as box:
        client = box.plan.client()
        devices = box.wait_for_devices(client)
        welcome(box.plan, devices, login_link(box.plan, client), as_json=as_json)
        with contextlib.suppress(KeyboardInterrupt):
            while True:
                box.check()
                time.sleep(CHECK_INTERVAL_S)
    say("stopped; what was pending goes on with the next `effillm up`")


def run(
    file: DefinitionFile,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="DIR", help="Folder for the results and the logs.", show_default=False),
    ],
    with_cpu: WithCpu = False,
    declare: Declared = None,
    as_json: AsJson = False,
) -> None:
    """Measure one sweep on this box: start everything, submit, show progress, save the results, stop everything.

    Its database lives in a folder of its own that is removed at the end; an `up` on this box and its data are not touched.
    Writes results.csv, results.json, results.parquet, report.html and logs/ into DIR. Exit code 1 when a job failed.
    """
    content = read_definition(file)
    definition = parse_definition(content)
    writable_folder(output)
    with tempfile.TemporaryDirectory(prefix="effillm-", ignore_cleanup_errors=True) as folder:
        # Nobody else is to reach it, so it needs no keys.
        own = {"data_dir": Path(folder), "port": 0, "host": "127.0.0.1", "require_keys": False}
        settings = Settings.from_environment().model_copy(update=own)
        with running(Plan(settings, output.absolute() / "logs", tuple(declare or ()), with_cpu)) as box:
            client = box.plan.client()
            devices = box.wait_for_devices(client)
            if settings.ray_address is None:
                check_hardware(definition, devices)
            sweep = client.submit(content)
            say(f"sweep {sweep['id']}: {sweep['total']} jobs; logs in {box.plan.logs}")
            try:
                sweep = watch.follow(client, sweep["id"], tick=box.check)
            except (KeyboardInterrupt, Unavailable):
                with contextlib.suppress(EffillmError):  # it may be the API that is gone
                    save(client, sweep["id"], output)
                    say(f"{output} has what was measured so far")
                raise
            wait_for_release(client, sweep["id"], box.check)
            rows = save(client, sweep["id"], output)
            written = [*(f"results.{form}" for form in EXPORTS), *report(client, sweep["id"], output)]
    print_json(rows) if as_json else tables.results(rows)
    say(f"wrote {', '.join(str(output / name) for name in written)}")
    raise typer.Exit(watch.outcome(sweep))


def wait_for_release(client: Client, sweep_id: str, tick: Callable[[], None]) -> None:
    """Returns when every measured row has its last memory stage: a child writes it when it ends, after its last result."""
    until = time.monotonic() + RELEASE_WITHIN_S
    while time.monotonic() < until:
        rows = client.get(f"/v1/sweeps/{sweep_id}/results", format="json")
        if all(row["ram_released_bytes"] for row in rows if row["state"] == "measured" and not row["simulated"]):
            return
        tick()
        time.sleep(RELEASE_POLL_S)


class Interruption:
    """Turns the first signal that asks us to stop into KeyboardInterrupt; later ones only hurry the stopping."""

    def __init__(self) -> None:
        self.box: Box | None = None
        self._has_come = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self._has_come or (self.box is not None and self.box.is_stopping):
            if self.box is not None:
                self.box.services.hurry = True
            return
        self._has_come = True
        raise KeyboardInterrupt


@contextmanager
def running(plan: Plan) -> Iterator[Box]:
    """A started box, stopped completely at the end; SIGINT, SIGTERM and SIGHUP arrive as KeyboardInterrupt."""
    interruption = Interruption()
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, interruption) for number in numbers}
    try:
        with local.claimed(plan) as box:
            interruption.box = box
            try:
                box.start()
                yield box
            finally:
                say("stopping …")
                box.stop()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def check_hardware(definition: SweepDefinition, devices: list[dict[str, Any]]) -> None:
    """Raises BadInput when the sweep names a class that this box does not offer: it would wait for ever."""
    here = sorted({device["hardware_class"] for device in devices})
    missing = sorted(set(definition.hardware) - set(here))
    if missing:
        raise BadInput(
            f"hardware: this box has no device of class {', '.join(missing)}, it offers {', '.join(here) or 'none'}: change "
            "`hardware`, add --cpu where a GPU is in the way, or submit to a lab that has it",
            field="hardware",
        )


def login_link(plan: Plan, client: Client) -> str:
    """The address that signs one browser in, once."""
    address = (plan.settings.public_url or plan.url).rstrip("/")
    return f"{address}{client.post('/v1/session/links')['path']}"


def welcome(plan: Plan, devices: list[dict[str, Any]], link: str, *, as_json: bool) -> None:
    """Says where the server answers and what to do next."""
    if as_json:
        data_dir = str(plan.settings.data_dir)
        print_json({"url": plan.url, "login": link, "pid": os.getpid(), "data_dir": data_dir, "devices": devices})
        return
    print(f"\nEffiLLM is ready at {plan.url}\n")
    print(f"  in a browser     {link}  (works once, for ten minutes)\n")
    for device in devices:
        reason = f" ({device['reason']})" if device["reason"] else ""
        print(f"  device {device['id']}: {device['hardware_class']}, {device['state']}{reason}")
    print("\n  submit a sweep   effillm submit FILE --watch")
    print("  look around      effillm ls · effillm devices · effillm results")
    print(f"  REST interface   {plan.url}/v1, described at {plan.url}/openapi.json")
    print(
        f"\nLogs are in {plan.logs}. Ctrl-C stops everything; what is pending goes on with the next `effillm up`.",
        flush=True,
    )


def save(client: Client, sweep_id: str, output: Path) -> Any:
    """Writes every export into `output`; returns the rows."""
    for form in EXPORTS:
        export(client, sweep_id, form, output / f"results.{form}")
    return client.get(f"/v1/sweeps/{sweep_id}/results", format="json")


def report(client: Client, sweep_id: str, output: Path) -> list[str]:
    """Writes the report into `output`; its name. The rows are saved by then: without a report the run is no failure."""
    try:
        save_report(client, sweep_id, output / REPORT)
    except EffillmError as error:
        say(f"no report: {error}")
        return []
    return [REPORT]
