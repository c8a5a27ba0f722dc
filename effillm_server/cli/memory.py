"""Where a measured job's memory went: its account, weights and cache beside their predictions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from effillm_server.cli.render import bytes_or_blank, console, print_table
from effillm_server.contract.account import beside

Record = Mapping[str, Any]


def show(job: Record) -> None:
    """Print the account of a measured job; nothing where there is none."""
    measurement = (job.get("result") or {}).get("measurement") or {}
    lines = beside((measurement.get("memory") or {}).get("account") or {})
    if not lines:
        return
    console().print("")
    print_table(
        ("memory", ">found", ">predicted"),
        ((_words(name), bytes_or_blank(found), bytes_or_blank(predicted)) for name, found, predicted in lines),
        empty="",
    )


def _words(name: str) -> str:
    return name.removesuffix("_bytes").replace("_", " ")
