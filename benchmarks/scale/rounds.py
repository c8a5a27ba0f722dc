"""Devices that finish a job and take the next one, as many at once as are named, with as many jobs waiting as are named."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from typing import Any

import sqlalchemy

from benchmarks.scale import common
from effillm_server.ledger import queue
from effillm_server.ledger.engine import connect

PROCESSES = 8
WARM_UP = 10
ROUNDS = {1: 600, 8: 2400, 64: 2400}
TASK = "benchmark.empty"


def measure(
    url: str, pending: Sequence[int], actors: Sequence[int], rounds: dict[int, int] | None = None
) -> dict[str, Any]:
    """Jobs per second and milliseconds of claim and round for each number of jobs waiting and of actors."""
    figures: dict[str, Any] = {}
    costs: dict[tuple[int, int], float] = {}
    engine = connect(url, "api")
    for waiting in pending:
        # Small backlogs are made anew for each run, or the last ones would find them half empty.
        stored = waiting >= 1_000_000 and _prepare(engine, waiting)
        for at_once in actors:
            if not stored:
                _prepare(engine, waiting)
            found = run(url, at_once, (rounds or ROUNDS)[at_once])
            name = f"rounds.{waiting}.{at_once}"
            costs[waiting, at_once] = 1 / found["per_s"]
            figures |= {f"{name}.{key}": value for key, value in found.items()}
        if waiting == pending[-1] or waiting == pending[0]:
            if not stored:
                _prepare(engine, waiting)
            some = max(n for n in actors if n <= PROCESSES)
            empty = run(url, some, (rounds or ROUNDS)[some], empty=True)
            figures[f"rounds.{waiting}.{some}.empty_per_s"] = empty["per_s"]
            figures |= {f"claim.{waiting}.{k}": v for k, v in claims(engine, 500 if rounds is None else 20).items()}
    engine.dispose()
    for at_once in actors:
        figures[f"rounds.growth.{at_once}"] = costs[pending[-1], at_once] / costs[pending[0], at_once]
    return figures


def run(url: str, actors: int, rounds: int, *, empty: bool = False) -> dict[str, Any]:
    """`actors` devices, `rounds` jobs altogether, in up to eight processes."""
    processes = min(PROCESSES, actors)
    each, threads = max(1, rounds // actors), actors // processes
    tasks = [(url, f"d{actors}-{'e' if empty else 'm'}-{n}", threads, each, empty) for n in range(processes)]
    answers = common.side_by_side(_process, tasks)
    began, ended = min(a[0] for a in answers), max(a[1] for a in answers)
    times = [t for a in answers for t in a[2]]
    return {
        "per_s": actors * each / (ended - began),
        "p50_ms": common.quantile(times, 0.5) * 1000, "p99_ms": common.quantile(times, 0.99) * 1000,
    }  # fmt: skip


def claims(engine: sqlalchemy.Engine, times: int) -> dict[str, float]:
    """Milliseconds of a lease with its commit; the device gives the job back outside of the time."""
    device, taken = "claimer", []
    with engine.begin() as c:
        common.join(c, device)
    for turn in range(times + WARM_UP):
        started = time.perf_counter()
        with engine.begin() as c:
            lease = queue.lease(c, common.request(device))
        if turn >= WARM_UP:
            taken.append((time.perf_counter() - started) * 1000)
        assert lease is not None, "no cell is left to claim: use more --pending"
        with engine.begin() as c:
            queue.finish(c, device, common.BOOT, lease.job_id, lease.fence, common.outcome(device, empty=True))
    return {"p50_ms": common.quantile(taken, 0.5), "p99_ms": common.quantile(taken, 0.99)}


def beside_procrastinate(url: str, pending: int, clients: Sequence[int], seconds: float) -> dict[str, Any]:
    """Jobs per second of procrastinate on the same server, asked for the next job and told of its end without any worker around it."""
    figures: dict[str, Any] = {}
    with common.own_database(url) as made:
        asyncio.run(_fill(made, pending))
        for at_once in clients:
            answers = common.side_by_side(_procrastinate, [(made, seconds)] * at_once)
            figures[f"procrastinate.{pending}.{at_once}.per_s"] = sum(answers)
    return figures


def _prepare(engine: sqlalchemy.Engine, waiting: int) -> bool:
    common.empty(engine)
    common.store(engine, waiting)
    common.tidy(engine)
    return True


def _process(
    barrier: Any, url: str, name: str, threads: int, rounds: int, empty: bool
) -> tuple[float, float, list[float]]:
    """(begin, end, seconds of each round) of `threads` devices; wall-clock times, for other processes to compare."""
    times: list[list[float]] = [[] for _ in range(threads)]
    ready, begin = threading.Barrier(threads + 1), threading.Event()
    errors: list[Exception] = []

    def device(number: int) -> None:
        try:
            _device(url, f"{name}-{number}", rounds, empty, ready, begin, times[number])
        except Exception as error:  # noqa: BLE001 - the edge of the thread
            errors.append(error)
            ready.abort()

    running = [threading.Thread(target=device, args=(number,)) for number in range(threads)]
    for thread in running:
        thread.start()
    ready.wait()
    barrier.wait()
    began = time.time()
    begin.set()
    for thread in running:
        thread.join()
    if errors:
        raise errors[0]
    return began, time.time(), [t for one in times for t in one]


def _device(
    url: str,
    device: str,
    rounds: int,
    empty: bool,
    ready: threading.Barrier,
    begin: threading.Event,
    times: list[float],
) -> None:
    engine = connect(url, "worker")
    with engine.begin() as c:
        common.join(c, device)
    with engine.begin() as c:
        lease = queue.lease(c, common.request(device))
    outcome = common.outcome(device, empty=empty)

    def finish() -> None:
        nonlocal lease
        assert lease is not None, "no cell is left: use more --pending"
        with engine.begin() as c:
            request = common.request(device, lease.load_group)
            lease = queue.finish(c, device, common.BOOT, lease.job_id, lease.fence, outcome, 0.5, request).next

    for _ in range(WARM_UP):
        finish()
    ready.wait()
    begin.wait()
    times += [common.timed(finish) for _ in range(rounds)]
    if lease is not None:
        with engine.begin() as c:
            queue.finish(c, device, common.BOOT, lease.job_id, lease.fence, outcome)
            queue.drain(c, device)
    engine.dispose()


async def _fill(url: str, pending: int) -> None:
    import procrastinate
    from procrastinate.schema import SchemaManager

    connector = procrastinate.PsycopgConnector(conninfo=_libpq(url), min_size=1, max_size=1)
    await connector.open_async()
    try:
        await SchemaManager(connector).apply_schema_async()
        await connector.execute_query_async(
            "INSERT INTO procrastinate_jobs (queue_name, task_name, args)"
            f" SELECT 'default', '{TASK}', '{{}}' FROM generate_series(1, {int(pending)})"
        )
        await connector.execute_query_async("ANALYZE procrastinate_jobs")
    finally:
        await connector.close_async()


def _procrastinate(barrier: Any, url: str, seconds: float) -> float:
    return asyncio.run(_procrastinate_client(barrier, url, seconds))


async def _procrastinate_client(barrier: Any, url: str, seconds: float) -> float:
    import procrastinate
    from procrastinate.jobs import Status
    from procrastinate.manager import JobManager

    connector = procrastinate.PsycopgConnector(conninfo=_libpq(url), min_size=1, max_size=1)
    await connector.open_async()
    try:
        jobs = JobManager(connector)
        worker = await jobs.register_worker()
        job = await jobs.fetch_job(None, worker)
        await asyncio.to_thread(barrier.wait)
        done, began = 0, time.perf_counter()
        while job is not None and time.perf_counter() - began < seconds:
            await jobs.finish_job(job, Status.SUCCEEDED, False)
            job = await jobs.fetch_job(None, worker)
            done += 1
        assert job is not None, "no job is left for procrastinate: use more --pending"
        return done / (time.perf_counter() - began)
    finally:
        await connector.close_async()


def _libpq(url: str) -> str:
    return sqlalchemy.make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
