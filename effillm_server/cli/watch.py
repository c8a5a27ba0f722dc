"""Following a sweep until it ends: what is running, what waits and why, how long it may still take."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from effillm_server.cli import tables
from effillm_server.cli.client import Client
from effillm_server.cli.render import console, plain, say
from effillm_server.contract.units import format_seconds
from effillm_server.errors import Unavailable
from effillm_server.lifecycle import MAX_ATTEMPTS, MAX_REMEASURES

INTERVAL_S = 1.0
# A server that restarts is away for seconds; a watcher that gives up at once would lose a sweep of days.
PATIENCE_S = 120.0
SHOWN_RUNNING = 3


@dataclass(frozen=True)
class Snapshot:
    """A sweep at one moment. `waiting` says in words why nothing runs, when nothing does."""

    sweep: dict[str, Any]
    running: tuple[str, ...]
    waiting: str | None

    @property
    def is_over(self) -> bool:
        return self.sweep["state"] in ("finished", "cancelled")


Show = Callable[[Snapshot], None]


def follow(
    client: Client, sweep_id: str, tick: Callable[[], None] = lambda: None, interval_s: float = INTERVAL_S
) -> dict[str, Any]:
    """The sweep once it is over. `tick` is called between looks and may raise to end the watching."""
    away_since: float | None = None
    with display() as show:
        while True:
            tick()
            try:
                snapshot = look(client, sweep_id)
            except Unavailable as error:
                if away_since is None:
                    away_since = time.monotonic()
                    say(f"{error} (still looking)")
                elif time.monotonic() - away_since > PATIENCE_S:
                    raise
            else:
                away_since = None
                show(snapshot)
                if snapshot.is_over:
                    return snapshot.sweep
            time.sleep(interval_s)


def look(client: Client, sweep_id: str) -> Snapshot:
    """The sweep as it stands."""
    sweep = client.get(f"/v1/sweeps/{sweep_id}")
    running: tuple[str, ...] = ()
    waiting = None
    if sweep["counts"].get("leased"):
        page = client.get(f"/v1/sweeps/{sweep_id}/jobs", state="leased", limit=SHOWN_RUNNING)
        running = tuple(tables.configuration(job["cell"]) + again(job) for job in page["items"])
    elif sweep["counts"].get("pending"):
        page = client.get(f"/v1/sweeps/{sweep_id}/jobs", state="pending", limit=1)
        if page["items"]:
            waiting = client.get(f"/v1/jobs/{page['items'][0]['id']}").get("explanation")
    return Snapshot(sweep, running, waiting)


def again(job: dict[str, Any]) -> str:
    """Why a job is being measured once more, if it is."""
    if job["remeasures"]:
        return f" (again, bad conditions {job['remeasures']} of at most {MAX_REMEASURES} times)"
    return f" (attempt {job['faults'] + 1} of {MAX_ATTEMPTS})" if job["faults"] else ""


def outcome(sweep: dict[str, Any]) -> int:
    """Exit code of a command that waited for `sweep`: 1 when a job failed or was cancelled, else 0."""
    return 1 if sweep["counts"].get("failed") or sweep["counts"].get("cancelled") else 0


def display() -> AbstractContextManager[Show]:
    """Where snapshots are shown: a live bar on a terminal, else a line per change."""
    return live_display() if console(stderr=True).is_terminal else line_display()


@contextmanager
def line_display() -> Iterator[Show]:
    """A line whenever something has changed."""
    last: str | None = None

    def show(snapshot: Snapshot) -> None:
        nonlocal last
        line = f"{tables.done(snapshot.sweep)} of {snapshot.sweep['total']} done: {tables.tally(snapshot.sweep)}"
        if now := doing(snapshot):
            line += f"; {now}"
        if line != last:
            say(line)
            last = line

    yield show


@contextmanager
def live_display() -> Iterator[Show]:
    """A bar, the tally, the time left, and what runs at the moment."""
    begun = time.monotonic()
    first_done: int | None = None
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(bar_width=30), TextColumn("{task.fields[tally]}"), TimeElapsedColumn(),
        console=console(stderr=True),
    )  # fmt: skip
    task: TaskID = bar.add_task("", total=None, tally="")

    with Live(console=console(stderr=True), refresh_per_second=4) as live:

        def show(snapshot: Snapshot) -> None:
            nonlocal first_done
            sweep, finished = snapshot.sweep, tables.done(snapshot.sweep)
            first_done = finished if first_done is None else first_done
            left = time_left(finished - first_done, sweep["total"] - finished, time.monotonic() - begun)
            bar.update(
                task, description=f"{finished}/{sweep['total']}", total=sweep["total"], completed=finished,
                tally=plain(tables.tally(sweep)),
            )  # fmt: skip
            lines: list[RenderableType] = [
                bar,
                Text(plain(doing(snapshot)), style="dim", overflow="ellipsis", no_wrap=True),
            ]
            if left is not None and not snapshot.is_over:
                lines.append(Text(f"about {format_seconds(left)} left at this rate", style="dim"))
            live.update(Group(*lines))

        yield show


def doing(snapshot: Snapshot) -> str:
    """What the sweep is doing, or what it waits for."""
    if snapshot.running:
        more = snapshot.sweep["counts"]["leased"] - len(snapshot.running)
        return "now: " + "; ".join(snapshot.running) + (f" and {more} more" if more > 0 else "")
    return snapshot.waiting or ""


def time_left(done_here: int, remaining: int, elapsed_s: float) -> float | None:
    """Seconds the rest takes at the rate seen so far; None while nothing has been seen."""
    return None if done_here <= 0 else remaining * elapsed_s / done_here
