"""A database without room on its disk, and one whose room an idle transaction keeps: what the clients of both see."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import sqlalchemy

from effillm_server import expand
from effillm_server.api import examples
from effillm_server.contract.sweep import SweepDefinition
from effillm_server.ledger import queries, queue
from effillm_server.ledger.engine import connect
from tests.support.api import serving
from tests.support.faults.database import Database
from tests.support.faults.worker_faults import fill
from tests.support.ledger import BOOT, cell, crashed, join, leased, submit

pytestmark = pytest.mark.faults

CLAIM_P99_MS = 50.0
CLAIMS = 300


@pytest.fixture
def folder() -> Iterator[Path]:
    """A disk of 400 MB in memory. Not below pytest's own folders, which Postgres' user cannot enter."""
    made = Path(f"/tmp/ef-room-{os.getpid()}")
    made.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400m", "tmpfs", str(made)], check=True)
    try:
        yield made
    finally:
        subprocess.run(["umount", "-l", str(made)], check=True)
        made.rmdir()


@pytest.fixture
def database(folder: Path) -> Iterator[Database]:
    made = Database(folder)
    try:
        yield made
    finally:
        made.close()


def test_a_full_disk_is_told_in_words_and_nothing_is_stored_by_half(database: Database, folder: Path) -> None:
    large = examples.DEFINITION | {
        "models": [{"id": "facebook/opt-125m", "weights": "synthetic"}],
        "batch_size": list(range(1, 101)), "sequence_length": list(range(1, 101)), "generate_tokens": [1, 2, 3, 4, 5],
    }  # fmt: skip
    with serving(database.url) as api:
        before = api.submit()
        filler = folder / "filler"
        fill(filler)
        refused = api.http.post("/v1/sweeps", json=large, headers={"Idempotency-Key": "k"}, timeout=120)
        assert refused.status_code == 503
        assert "no room left on the disk of the database" in refused.json()["detail"]
        filler.unlink()
        database.start()
        stored = _repeated(api.http, large)
        assert stored["total"] == expand.count(SweepDefinition.model_validate(large))
        with database.engine.connect() as c:
            assert {s.id for s in queries.sweeps(c, None, 10)} == {before["id"], stored["id"]}
            for table in sqlalchemy.inspect(c).get_table_names():
                c.exec_driver_sql(f'SELECT count(*) FROM (SELECT * FROM "{table}" OFFSET 0) AS everything')


def _repeated(client: httpx.Client, definition: dict[str, object]) -> dict[str, object]:
    """The answer to the same request, sent until there is one: a server that had no room may have to start again."""
    until = time.monotonic() + 60
    while True:
        answer = client.post("/v1/sweeps", json=definition, headers={"Idempotency-Key": "k"}, timeout=120)
        if answer.status_code in (200, 201):
            return dict(answer.json())
        assert answer.status_code == 503, answer.text
        assert time.monotonic() < until, answer.text


def test_claims_stay_quick_beside_an_idle_transaction_until_its_time_is_out(database: Database) -> None:
    engine = connect(database.url, "worker")
    with engine.begin() as c:
        join(c)
        submit(c, *(cell(batch_size=1 + n % 64, sequence_length=1 + n // 64) for n in range(10_000)))
    other = connect(database.url, "api")
    idle = other.connect()
    # A snapshot of the whole ledger: whatever happens from now on, no dead row can be taken away.
    idle.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
    pid = idle.exec_driver_sql("SELECT pg_backend_pid() FROM job LIMIT 1").scalar_one()
    began, times = time.monotonic(), []
    for _ in range(CLAIMS):
        started = time.perf_counter()
        with engine.begin() as c:
            lease = leased(c)
        times.append((time.perf_counter() - started) * 1000)
        with engine.begin() as c:
            queue.finish(c, lease.device_id, BOOT, lease.job_id, lease.fence, crashed(), 0.0)
    alive = "SELECT count(*) FROM pg_stat_activity WHERE pid = :pid"
    assert database.scalar(alive, pid=pid) == 1
    while database.scalar(alive, pid=pid):
        assert time.monotonic() - began < 20, "the idle transaction was not ended by its time-out"
        time.sleep(0.2)
    idle.invalidate()
    idle.close()
    other.dispose()
    engine.dispose()
    p99 = sorted(times)[int(CLAIMS * 0.99) - 1]
    print(f"claim p99 {p99:.1f} ms beside an idle transaction")
    assert p99 < CLAIM_P99_MS
