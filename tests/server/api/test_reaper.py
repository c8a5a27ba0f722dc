from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from datetime import datetime

import pytest
import sqlalchemy

from effillm_server.api import examples, reaper
from effillm_server.api.reaper import Reaper
from effillm_server.ledger import queries, queue
from effillm_server.ledger.engine import connect
from effillm_server.lifecycle import JobState
from tests.support.api import Api, add_device, lease

PATIENCE_S = 20


class Watched:
    """`queue.reap` itself, with a note of every call and what it took back."""

    def __init__(self) -> None:
        self.calls: list[tuple[datetime, datetime]] = []
        self.called = threading.Event()
        self.took = threading.Event()

    def __call__(
        self, c: sqlalchemy.Connection, jitter: Callable[[], float], not_before: datetime
    ) -> list[tuple[int, int]]:
        taken = queue.reap(c, jitter, not_before)
        self.calls.append((queue.database_time(c), not_before))
        self.called.set()
        return taken

    def committed(self, count: int) -> None:
        """What the reaper calls once its transaction stands: only then may anybody else look."""
        if count:
            self.took.set()


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    watched = Watched()
    monkeypatch.setattr(reaper, "queue", type("Queue", (), {"reap": watched, "database_time": queue.database_time}))
    return watched


@pytest.fixture
def running(api: Api, watched: Watched) -> Iterator[Callable[[float], Reaper]]:
    started: list[Reaper] = []

    def start(ttl_s: float) -> Reaper:
        started.append(Reaper(api.engine, ttl_s, on_reaped=watched.committed, jitter=lambda: 0.5))
        started[-1].start()
        return started[-1]

    yield start
    for each in started:
        each.stop()


def state(api: Api, job_id: int) -> JobState:
    with api.engine.connect() as c:
        job = queries.job(c, job_id)
    assert job is not None
    return job.state


def test_an_expired_lease_is_taken_back_and_its_job_retried(
    api: Api, watched: Watched, running: Callable[[float], Reaper]
) -> None:
    api.submit()
    add_device(api.engine)
    held = lease(api.engine, ttl_s=0.2)
    running(0.2)
    assert watched.took.wait(PATIENCE_S)
    detail = api.http.get(f"/v1/jobs/{held.job_id}").json()
    assert (detail["state"], detail["reason"]) == ("pending", "lost")
    (device,) = api.http.get("/v1/devices").json()["items"]
    assert (device["id"], device["state"]) == (examples.DEVICE_ID, "lost")


def test_nothing_is_reaped_before_one_time_to_live_has_passed_since_the_start(
    api: Api, watched: Watched, running: Callable[[float], Reaper]
) -> None:
    api.submit()
    add_device(api.engine)
    held = lease(api.engine, ttl_s=0.01)
    running(3600)
    assert watched.called.wait(PATIENCE_S)
    now, not_before = watched.calls[0]
    assert (not_before - now).total_seconds() == pytest.approx(3600, abs=60)
    assert state(api, held.job_id) is JobState.LEASED


def test_a_database_that_is_away_does_not_end_the_reaper(
    database_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tried = threading.Semaphore(0)

    def away(c: sqlalchemy.Connection) -> datetime:
        tried.release()
        raise sqlalchemy.exc.OperationalError("SELECT", None, Exception("gone"))

    monkeypatch.setattr(reaper, "queue", type("Queue", (), {"database_time": staticmethod(away)}))
    engine = connect(database_url, "api")
    running = Reaper(engine, 0.1)
    running.start()
    try:
        assert all(tried.acquire(timeout=PATIENCE_S) for _ in range(3))
    finally:
        running.stop()
        engine.dispose()
    assert "reaper_database_away" in caplog.text
