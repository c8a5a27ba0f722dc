"""Submitting a large sweep: beside a plain COPY of the same rows, in flat memory, whole or not at all."""

from __future__ import annotations

import multiprocessing
import resource
import tempfile
import time
from typing import Any

import sqlalchemy

from benchmarks.scale.common import definition, planned, store, timed
from effillm_server.contract.sweep import SweepDefinition
from effillm_server.ledger import queue
from effillm_server.ledger.engine import connect

KEY = "the same request"


def measure(url: str, cells: int) -> dict[str, Any]:
    """Seconds to expand and store `cells` cells, and of a COPY of the same rows into a table with the same indexes."""
    engine = connect(url, "api")
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    # In a process of its own: what grows there is the sweep's and nobody else's.
    process = context.Process(target=_submit, args=(url, cells, answers))
    process.start()
    seconds, total, grown = answers.get(timeout=600)
    process.join()
    copy_s = plain_copy(engine)
    engine.dispose()
    return {
        "store.cells": total, "store.seconds": seconds, "store.jobs_per_s": total / seconds,
        "store.plain_copy_s": copy_s, "store.share_of_plain_copy": copy_s / seconds,
        "store.memory_grown_mb": grown / 1e6,
    }  # fmt: skip


def kill_in_the_middle(url: str, cells: int) -> dict[str, Any]:
    """SIGKILL while the sweep is being stored; then the same request again."""
    engine = connect(url, "api")
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_submit_slowly, args=(url, cells))
    process.start()
    before, jobs = _rows_written(engine), _count(engine, "job")
    until = time.monotonic() + 300
    while _rows_written(engine) - before < cells // 10 and time.monotonic() < until:
        time.sleep(0.02)
    process.kill()
    process.join()
    left = _count(engine, "sweep WHERE idempotency_key = :key") + _count(engine, "job") - jobs
    sweep_id = store(engine, cells, KEY)
    total = _count(engine, "job WHERE sweep_id = :sweep", sweep=sweep_id)
    again = queue.new_sweep_id()
    with engine.begin() as c:
        repeated = queue.enqueue(c, queue.NewSweep(again, definition(cells), None, KEY), planned(definition(cells)))
    sweeps = _count(engine, "sweep WHERE idempotency_key = :key")
    engine.dispose()
    return {
        "kill.rows_left": left, "kill.jobs_after_repeat": total, "kill.jobs_missing": definition_size(cells) - total,
        "kill.answer_to_third": repeated, "kill.sweeps_of_key": sweeps,
    }  # fmt: skip


def definition_size(cells: int) -> int:
    """Cells of the sweep that `definition` makes."""
    of = definition(cells)
    return len(of.models) * len(of.batch_size) * len(of.sequence_length)


def plain_copy(engine: sqlalchemy.Engine) -> float:
    """Seconds of a COPY of all jobs into a copy of their table, indexes and checks included."""
    with engine.connect() as c, tempfile.TemporaryFile("w+") as file:
        names = "sweep_id, ordinal, digest, model, weights, quantization, dtype, engine, runtime, hardware, batch_size,"
        names += "sequence_length, workload, generate_tokens, repeat, size, load_group, priority, state"
        c.exec_driver_sql("SET LOCAL statement_timeout = 0")
        c.exec_driver_sql("CREATE TABLE plain (LIKE job INCLUDING ALL)")
        cursor = c.connection.cursor()
        cursor.copy_expert(f"COPY (SELECT {names} FROM job ORDER BY ordinal) TO STDOUT", file)
        file.seek(0)

        def copy() -> None:
            cursor.copy_expert(f"COPY plain ({names}) FROM STDIN", file, 1 << 16)
            c.commit()

        seconds = timed(copy)
        c.exec_driver_sql("DROP TABLE plain")
        c.commit()
    return seconds


def _submit(url: str, cells: int, answers: Any) -> None:
    engine = connect(url, "api")
    # Once small, so that what is loaded at first use is not counted.
    with engine.connect() as c:
        few = definition(64)
        queue.enqueue(c, queue.NewSweep(queue.new_sweep_id(), few), planned(few))
        c.rollback()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    of = definition(cells)
    sweep, total = queue.NewSweep(queue.new_sweep_id(), of), 0

    def submit() -> None:
        nonlocal total
        with engine.begin() as c:
            total = queue.enqueue(c, sweep, planned(of))

    seconds = timed(submit)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    engine.dispose()
    answers.put((seconds, total, grown))


def _submit_slowly(url: str, cells: int) -> None:
    engine = connect(url, "api")
    of: SweepDefinition = definition(cells)
    with engine.begin() as c:
        queue.enqueue(c, queue.NewSweep(queue.new_sweep_id(), of, None, KEY), planned(of))
        # Stored and not committed: whoever kills it now finds it here, however small the sweep.
        time.sleep(60)


def _rows_written(engine: sqlalchemy.Engine) -> int:
    """Pages of the table so far, as rows: an uncommitted COPY shows in nothing else."""
    with engine.connect() as c:
        size = c.exec_driver_sql("SELECT pg_relation_size('job')").scalar_one()
    return int(size) // 250


def _count(engine: sqlalchemy.Engine, of: str, **values: Any) -> int:
    with engine.connect() as c:
        c.exec_driver_sql("SET LOCAL statement_timeout = 0")
        statement = sqlalchemy.text(f"SELECT count(*) FROM {of}")
        given = {"key": KEY} | values
        return int(c.execute(statement, {k: v for k, v in given.items() if f":{k}" in of}).scalar_one())
