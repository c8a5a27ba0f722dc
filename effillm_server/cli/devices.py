"""Commands about devices: `devices`, `drain`, and `node`, which offers this box to a cluster."""

from __future__ import annotations

import os
import sys
from typing import Annotated
from urllib.parse import quote

import typer

from effillm_server.cli import tables
from effillm_server.cli.options import AsJson, client
from effillm_server.cli.render import plain, print_json


def devices(context: typer.Context, as_json: AsJson = False) -> None:
    """List the devices of the lab, what each does, and why it does not."""
    found = client(context).get("/v1/devices")["items"]
    print_json(found) if as_json else tables.devices(found)


def drain(
    context: typer.Context,
    device: Annotated[str, typer.Argument(metavar="DEVICE", help="Id of the device.", show_default=False)],
    undo: Annotated[bool, typer.Option("--undo", help="Give a drained device jobs again.")] = False,
    as_json: AsJson = False,
) -> None:
    """Let a device finish what it holds and take nothing more."""
    answer = client(context).post(f"/v1/devices/{quote(device, safe='')}/{'undrain' if undo else 'drain'}")
    print_json(answer) if as_json else print(plain(f"device {answer['id']}: {answer['state']}"))


def node(context: typer.Context) -> None:
    """Offer this box's devices to a cluster: --address HEAD:PORT, or --head for a cluster's first box.

    Becomes `python -m effillm_worker.node`, so that signals and the exit code are the node's own. Its options: --help.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, "-m", "effillm_worker.node", *context.args])  # noqa: S606 - no shell
