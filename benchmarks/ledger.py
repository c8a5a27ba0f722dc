"""How far the ledger goes: large sweeps, many devices, many who watch. Ratios are the results, absolute figures their context.

    python benchmarks/ledger.py --json ledger.json               # the whole, on an embedded Postgres with fsync on
    python benchmarks/ledger.py --pending 10000 --quick          # everything in small, in a minute
    python benchmarks/ledger.py --url postgresql://... --parts rounds procrastinate

Against a URL it works in databases of its own, which it creates and drops. Cells are simulated, of one sample each.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.scale import common, crowd, reading, rounds, storing, streams
from effillm_server.ledger.engine import connect, migrate

PARTS = ("store", "kill", "rounds", "procrastinate", "read", "events", "crowd")
# Jobs a second that nobody here can finish.
MOST_PER_S = 3000.0


@dataclass(frozen=True)
class Plan:
    """How much of everything."""

    pending: tuple[int, ...]
    actors: tuple[int, ...]
    rounds: dict[int, int] | None
    seconds: float
    subscribers: int
    devices: int
    cell_s: float


@dataclass(frozen=True)
class Target:
    """What a figure should be at least or at most."""

    limit: float
    at_least: bool = False

    def is_met(self, value: float) -> bool:
        return value >= self.limit if self.at_least else value <= self.limit


def main(words: Sequence[str] | None = None) -> int:
    """0, whatever the figures: a target that is missed says so in its line."""
    arguments = _arguments(words)
    plan = _plan(arguments)
    figures: dict[str, Any] = {"load_before": os.getloadavg()[0]}
    started = time.perf_counter()
    with common.server(arguments.url) as server:
        for part in arguments.parts:
            began = time.perf_counter()
            found = STEPS[part](server, plan)
            figures |= found | {f"{part}.took_s": time.perf_counter() - began}
            _print(found, plan)
    figures |= {"load_after": os.getloadavg()[0], "took_s": time.perf_counter() - started}
    _print({name: figures[name] for name in ("load_before", "load_after", "took_s")}, plan)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 0


def store(server: str, plan: Plan) -> dict[str, Any]:
    with common.own_database(server) as url:
        migrate(url)
        return storing.measure(url, plan.pending[-1])


def kill(server: str, plan: Plan) -> dict[str, Any]:
    with common.own_database(server) as url:
        migrate(url)
        return storing.kill_in_the_middle(url, min(plan.pending[-1], 200_000))


def run_rounds(server: str, plan: Plan) -> dict[str, Any]:
    with common.own_database(server) as url:
        migrate(url)
        return rounds.measure(url, plan.pending, plan.actors, plan.rounds)


def procrastinate(server: str, plan: Plan) -> dict[str, Any]:
    """Ours and theirs one after the other on the same backlog, so that both meet the same machine."""
    clients = tuple(n for n in plan.actors if n <= 8)
    # More than either can finish in the time.
    waiting = max(plan.pending[0], int(MOST_PER_S * plan.seconds))
    figures = rounds.beside_procrastinate(server, waiting, clients, plan.seconds)
    for at_once in clients:
        with common.own_database(server) as url:
            migrate(url)
            engine = connect(url, "api")
            common.store(engine, waiting)
            common.tidy(engine)
            ours = rounds.run(url, at_once, (plan.rounds or rounds.ROUNDS)[at_once], empty=True)["per_s"]
            engine.dispose()
        figures[f"procrastinate.{waiting}.{at_once}.ours_per_s"] = ours
        figures[f"procrastinate.ratio.{at_once}"] = ours / figures[f"procrastinate.{waiting}.{at_once}.per_s"]
    return figures


def read(server: str, plan: Plan) -> dict[str, Any]:
    with common.own_database(server) as url:
        migrate(url)
        engine = connect(url, "api")
        sweep = common.store(engine, plan.pending[-1])
        common.tidy(engine)
        engine.dispose()
        with streams.api(url) as address:
            return reading.measure(url, address, sweep, 200 if plan.rounds is None else 20)


def events(server: str, plan: Plan) -> dict[str, Any]:
    with common.own_database(server) as url:
        migrate(url)
        with streams.api(url) as address:
            times = 20 if plan.rounds is None else 5
            alone = streams.measure(url, address, 1, times)
            return alone | streams.measure(url, address, plan.subscribers, times)


def run_crowd(server: str, plan: Plan) -> dict[str, Any]:
    with common.own_database(server) as url:
        migrate(url)
        engine = connect(url, "api")
        common.store(engine, max(plan.pending[0], 20 * plan.devices))
        common.tidy(engine)
        engine.dispose()
        seconds = 3 * plan.seconds
        return crowd.measure(url, plan.devices, seconds, plan.cell_s) | crowd.renewals(url, plan.devices, plan.seconds)


STEPS: dict[str, Callable[[str, Plan], dict[str, Any]]] = {
    "store": store, "kill": kill, "rounds": run_rounds, "procrastinate": procrastinate, "read": read, "events": events,
    "crowd": run_crowd,
}  # fmt: skip


def targets(plan: Plan) -> dict[str, Target]:
    """Those of docs/scale.md, under the names the figures have for this plan."""
    most, few = plan.pending[-1], plan.pending[0]
    return {
        "store.seconds": Target(30.0 * most / 1_000_000), "store.share_of_plain_copy": Target(0.5, at_least=True),
        "store.memory_grown_mb": Target(50.0), "kill.rows_left": Target(0), "kill.jobs_missing": Target(0),
        f"claim.{most}.p99_ms": Target(15.0), f"claim.{few}.p99_ms": Target(15.0),
        f"rounds.{few}.8.per_s": Target(500.0, at_least=True), f"rounds.{most}.8.per_s": Target(500.0, at_least=True),
        **{f"rounds.growth.{n}": Target(1.5) for n in plan.actors},
        **{f"procrastinate.ratio.{n}": Target(3.0, at_least=True) for n in plan.actors},
        "read.progress_p99_ms": Target(50.0), "read.rest_progress_p99_ms": Target(50.0),
        "read.page_p99_ms": Target(20.0), "read.page_pending_p99_ms": Target(20.0), "read.rest_page_p99_ms": Target(20.0),
        "events.1.p99_ms": Target(100.0), f"events.{plan.subscribers}.p99_ms": Target(1000.0),
        f"events.{plan.subscribers}.missing": Target(0),
        "crowd.late_p99_s": Target(1.0), "crowd.lost_leases": Target(0), "crowd.expired": Target(0),
        "renewals.per_s": Target(1000.0, at_least=True),
    }  # fmt: skip


def _print(figures: dict[str, Any], plan: Plan) -> None:
    wanted = targets(plan)
    for name, value in figures.items():
        told = ""
        if (target := wanted.get(name)) is not None:
            bound = f"{'at least' if target.at_least else 'at most'} {target.limit:g}"
            told = f"   {bound}: {'met' if target.is_met(value) else 'MISSED'}"
        print(f"{name:<34} {value:>14,.2f}{told}", flush=True)


def _plan(arguments: argparse.Namespace) -> Plan:
    most = arguments.pending
    few = tuple(n for n in (10_000, 100_000) if n < most)
    quick = arguments.quick
    return Plan(
        pending=(*few, most), actors=(1, 2) if quick else (1, 8, 64),
        rounds={1: 30, 2: 60} if quick else None, seconds=1.0 if quick else arguments.seconds,
        subscribers=arguments.subscribers or (50 if quick else 2000), devices=arguments.devices or (40 if quick else 1000),
        cell_s=arguments.cell_s,
    )  # fmt: skip


def _arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="Postgres to use; none: an embedded one")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--pending", type=int, default=1_000_000, help="jobs of the largest sweep")
    parser.add_argument("--quick", action="store_true", help="few rounds, subscribers and devices")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of what is measured by time")
    parser.add_argument("--subscribers", type=int)
    parser.add_argument("--devices", type=int)
    parser.add_argument("--cell-s", type=float, default=10.0, help="seconds a simulated device measures a cell")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    return parser.parse_args(words)


if __name__ == "__main__":
    raise SystemExit(main())
