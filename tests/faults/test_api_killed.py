"""An API that is killed at 100 random moments of storing a sweep: each sweep is whole or absent, and the repeat gets the one."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from effillm_server.api import examples
from effillm_server.ports import free_port
from tests.support.faults.database import Database
from tests.support.waiting import until

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]

KILLS = 100
SEED = int(os.environ.get("EFFILLM_FAULT_SEED") or random.SystemRandom().randrange(10**6))
DEFINITION = examples.DEFINITION | {
    "models": [{"id": "facebook/opt-125m", "weights": "synthetic"}], "quantization": ["fp32"],
    "batch_size": list(range(1, 26)), "sequence_length": list(range(1, 41)), "generate_tokens": 1,
}  # fmt: skip
JOBS = 1000
# What there is of the sweep under a key, in one statement and so at one moment.
STORED = """
SELECT s.id, s.total, (SELECT count(*) FROM job j WHERE j.sweep_id = s.id) AS jobs,
    (SELECT sum(k.pending + k.infeasible) FROM sweep_counter k WHERE k.sweep_id = s.id) AS counted
FROM sweep s WHERE s.idempotency_key = :key
"""


@dataclass(frozen=True)
class Api:
    pid: int
    url: str

    def is_ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/readyz", timeout=20).status_code == 200
        except httpx.HTTPError:
            return False

    def post(self, key: str) -> httpx.Response:
        return httpx.post(f"{self.url}/v1/sweeps", json=DEFINITION, headers={"Idempotency-Key": key}, timeout=60)


class Sending(threading.Thread):
    """One submission that nobody repeats; `answer` stays None when the API dies over it."""

    def __init__(self, api: Api, key: str) -> None:
        super().__init__()
        self._api, self._key = api, key
        self.begun = threading.Event()
        self.answer: dict[str, Any] | None = None

    def run(self) -> None:
        self.begun.set()
        try:
            response = self._api.post(self._key)
        except httpx.HTTPError:
            return
        assert response.status_code == 201, response.text
        self.answer = response.json()


class Nursery:
    """Brings up APIs over one database."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def begin(self) -> Api:
        """An API on its way; ask it whether it is ready."""
        assert self._process.stdin is not None and self._process.stdout is not None
        port = free_port()
        self._process.stdin.write(f"{port}\n")
        self._process.stdin.flush()
        return Api(int(self._process.stdout.readline()), f"http://127.0.0.1:{port}")


@contextmanager
def nursery(database: Database, folder: Path) -> Iterator[Nursery]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("EFFILLM_")}
    environment |= {
        "EFFILLM_DATABASE_URL": database.url, "EFFILLM_DATA_DIR": str(folder / "data"), "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    with (folder / "api.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.faults.nursery"], env=environment, text=True, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=log,
        )  # fmt: skip
    try:
        yield Nursery(process)
    finally:
        process.communicate(timeout=30)


@pytest.fixture
def database() -> Iterator[Database]:
    """Not below pytest's own folders, which Postgres' user cannot enter."""
    folder = Path(f"/tmp/ef-killed-{os.getpid()}")
    made = Database(folder)
    try:
        yield made
    finally:
        made.close()
        shutil.rmtree(folder)


def stored(database: Database, key: str) -> str | None:
    """The sweep under this key, None while there is none. Fails for one that is there by halves, or twice."""
    rows = database.read(STORED, key=key)
    assert [(row.total, row.jobs, row.counted) for row in rows] in ([], [(JOBS, JOBS, JOBS)]), rows
    return str(rows[0].id) if rows else None


def usual_s(api: Api) -> float:
    """Seconds that storing the sweep takes when nobody is killed."""
    times = []
    for number in range(3):
        began = time.monotonic()
        assert api.post(f"undisturbed-{number}").json()["total"] == JOBS
        times.append(time.monotonic() - began)
    return sorted(times)[1]


def kill_while_storing(api: Api, database: Database, key: str, after_s: float) -> Sending:
    """The submission whose API was killed `after_s` into it; what there is of it now is whole."""
    sending = Sending(api, key)
    sending.start()
    sending.begun.wait()
    time.sleep(after_s)
    os.kill(api.pid, signal.SIGKILL)
    stored(database, key)
    sending.join()
    return sending


def test_a_sweep_whose_api_is_killed_is_whole_or_absent_and_its_repeat_stores_it_once(
    database: Database, tmp_path: Path
) -> None:
    dice, fates = random.Random(SEED), Counter[str]()
    with nursery(database, tmp_path) as apis:
        api, following = apis.begin(), apis.begin()
        until("the first API is ready", api.is_ready, 60)
        took_s = usual_s(api)
        for number in range(KILLS):
            key = f"killed-{number}"
            until("the next API is ready", following.is_ready, 60)
            after = apis.begin()  # comes up meanwhile
            sending = kill_while_storing(api, database, key, dice.uniform(0, 1.2 * took_s))
            found = stored(database, key)
            repeat = following.post(key)
            assert repeat.status_code in (200, 201), repeat.text
            assert (repeat.json()["id"], repeat.json()["total"]) == (stored(database, key), JOBS)
            if found is not None:
                assert (repeat.status_code, repeat.json()["id"]) == (200, found)
            if sending.answer is not None:
                assert sending.answer["id"] == found
            fates["answered" if sending.answer else "stored and not answered" if found else "not stored"] += 1
            api, following = following, after
    told = ", ".join(f"{name} {times}" for name, times in sorted(fates.items()))
    print(f"seed {SEED}: the API killed {KILLS} times within {1.2 * took_s:.2f} s of a submission: {told}")
    # Moments of storing, and not only before and behind it.
    assert fates["not stored"] >= KILLS // 4
    assert fates["answered"] < KILLS // 2
    whole = database.read("SELECT count(*) AS sweeps, sum(total) AS jobs FROM sweep")[0]
    assert (whole.sweeps, whole.jobs) == (KILLS + 3, (KILLS + 3) * JOBS)
    assert database.scalar("SELECT count(*) FROM job") == (KILLS + 3) * JOBS
