"""Notifications: one for whoever is alone, never a queue of those who are many."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import psycopg2
import pytest
from sqlalchemy import Connection, Engine

from effillm_server.ledger import queue
from effillm_server.ledger.journal import SHARDS, shard_of
from tests.support.ledger import BOOT, cell, child, join, leased, measured, submit


@pytest.fixture
def listener(engine: Engine) -> Iterator[Any]:
    url = engine.url
    listener = psycopg2.connect(host=url.query["host"], user=url.username, dbname=url.database)
    listener.autocommit = True
    with listener.cursor() as cursor:
        cursor.execute(f"LISTEN {queue.CHANNEL}")
    yield listener
    listener.close()


def _heard(listener: Any) -> list[str]:
    """Kinds notified so far: the listening session is told before a commit returns, and tells with its next answer."""
    with listener.cursor() as cursor:
        cursor.execute("SELECT 1")
    kinds = [json.loads(notification.payload)["kind"] for notification in listener.notifies]
    listener.notifies.clear()
    return kinds


def _two_running(c: Connection) -> list[Any]:
    for name in ("one", "two"):
        join(c, name)
    submit(c, *(cell(batch_size=b) for b in (1, 2, 3)))
    return [leased(c, name) for name in ("one", "two")]


def _finish(c: Connection, lease: Any) -> None:
    queue.finish(c, lease.device_id, BOOT, lease.job_id, lease.fence, measured(child=child(lease.device_id)))


def test_a_transition_that_is_alone_is_announced(engine: Engine, listener: Any) -> None:
    with engine.begin() as c:
        leases = _two_running(c)
    _heard(listener)
    for lease in leases:
        with engine.begin() as c:
            _finish(c, lease)
        assert _heard(listener) == ["job_measured"]


def test_of_transitions_at_one_moment_one_is_announced_and_none_waits_for_it(engine: Engine, listener: Any) -> None:
    with engine.begin() as c:
        one, two = _two_running(c)
        _finish(c, leased(c, "one"))
        again = leased(c, "one")
    _heard(listener)
    with engine.connect() as slow:
        _finish(slow, again)
        with engine.begin() as c:
            c.exec_driver_sql("SET LOCAL lock_timeout = 1000")
            _finish(c, two)
        assert _heard(listener) == []
        slow.commit()
    assert _heard(listener) == ["job_measured"]
    assert one.job_id != two.job_id


def test_what_people_do_is_always_announced(engine: Engine, listener: Any) -> None:
    with engine.begin() as c:
        leases = _two_running(c)
    _heard(listener)
    with engine.connect() as slow:
        _finish(slow, leases[0])
        with engine.begin() as c:
            submit(c, cell(hardware="t4"))
        assert _heard(listener) == ["sweep_created"]
        slow.rollback()


def test_devices_spread_over_all_shards() -> None:
    assert {shard_of(f"device-{n}") for n in range(500)} == set(range(SHARDS))
