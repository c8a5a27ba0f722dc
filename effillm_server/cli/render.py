"""What the terminal shows: tables and progress for people, JSON for programs. Results go to stdout, talk to stderr."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from rich.console import Console, JustifyMethod
from rich.table import Table
from rich.text import Text

from effillm_server.contract.units import format_bytes, format_seconds

# Without a terminal nobody wraps lines for us; wide enough for every table of ours.
WIDTH_WITHOUT_TERMINAL = 200
NARROW = 110
NARROWEST_COLUMN = 9
STYLES = {
    "measured": "green", "finished": "green", "free": "green", "valid": "green",
    "running": "cyan", "leased": "cyan",
    "infeasible": "yellow", "suspect": "yellow", "quarantined": "yellow", "releasing": "yellow", "draining": "yellow",
    "failed": "red", "lost": "red", "invalid": "red",
    "cancelled": "dim", "pending": "dim",
}  # fmt: skip


WORD = re.compile(r"[:,]")


def console(*, stderr: bool = False) -> Console:
    """A console that neither interprets what it prints nor folds it where no terminal is."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else WIDTH_WITHOUT_TERMINAL
    return Console(stderr=stderr, markup=False, highlight=False, emoji=False, width=width, soft_wrap=False)


def is_narrow() -> bool:
    """Whether stdout is a terminal too narrow for our widest tables."""
    return console().width < NARROW


def plain(value: Any) -> str:
    """`value` as text without control characters: what comes from elsewhere must not steer the terminal."""
    text = "" if value is None else str(value)
    return "".join(c if c.isprintable() else " " if c.isspace() else "\N{REPLACEMENT CHARACTER}" for c in text)


def say(message: str) -> None:
    """One line of talk on stderr."""
    console(stderr=True).print(plain(message), soft_wrap=True)


def print_json(value: Any) -> None:
    """`value` as JSON on stdout, at once: who reads it through a pipe may wait for it while this process goes on."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n")
    sys.stdout.flush()


def print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, empty: str) -> None:
    """A table on stdout, or `empty` in words.

    A column whose name begins with `>` is set to the right; one that begins with `~` gives way where the terminal is narrow.
    """
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1 if is_narrow() else 2, 0, 0))
    for column in columns:
        justify: JustifyMethod = "right" if column.startswith(">") else "left"
        gives_way, name = column.startswith("~"), column.lstrip(">~")
        width = NARROWEST_COLUMN if gives_way else None
        table.add_column(name, justify=justify, overflow="fold", no_wrap=not gives_way, min_width=width)
    for row in rows:
        table.add_row(*(cell(value) for value in row))
    if table.row_count:
        console().print(table)
    else:
        console().print(empty)


def print_facts(facts: Mapping[str, Any]) -> None:
    """Names and values, one per line; what is empty is left out."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts.items():
        if value not in (None, "", (), [], {}):
            table.add_row(name, cell(value))
    console().print(table)


def cell(value: Any) -> Text:
    """A value as a cell: states in their colour, nothing interpreted."""
    text = plain(value)
    return Text(text, style=STYLES.get(WORD.split(text, maxsplit=1)[0], ""))


def bytes_or_blank(value: Any) -> str:
    """Bytes for people, blank where nothing was measured."""
    return "" if value is None else format_bytes(float(value))


def seconds_or_blank(value: Any) -> str:
    """Seconds for people, blank where nothing was measured."""
    return "" if value is None else format_seconds(float(value))


def ago(moment: str | None) -> str:
    """How long ago an ISO 8601 moment was."""
    if not moment:
        return ""
    elapsed = (datetime.now(UTC) - datetime.fromisoformat(moment)).total_seconds()
    return f"{format_seconds(elapsed)} ago" if elapsed >= 1 else "now"


def interval(row: Mapping[str, Any], metric: str) -> str:
    """Mean and half width of the 95 % interval of a metric of a result row: `41.3 ± 0.4`."""
    mean, low, high = (row.get(f"{metric}_{part}") for part in ("mean", "ci95_low", "ci95_high"))
    if mean is None:
        return ""
    if low is None or high is None:
        return f"{mean:.4g}"
    half = (high - low) / 2
    return f"{mean:.{decimals(mean)}f} ± {half:.{decimals(mean)}f}"


def decimals(value: float) -> int:
    """Digits behind the point that show `value` to about four figures."""
    size = abs(value)
    return 0 if size >= 1000 else 1 if size >= 100 else 2 if size >= 10 else 3


@contextmanager
def step(doing: str, done: str) -> Iterator[None]:
    """Says what is being done while it is done, then what has been reached and how long it took."""
    talk = console(stderr=True)
    begun = time.monotonic()
    if talk.is_terminal:
        with talk.status(f"{doing} …"):
            yield
    else:
        talk.print(f"{doing} …")
        yield
    talk.print(f"{done} ({format_seconds(time.monotonic() - begun)})")
