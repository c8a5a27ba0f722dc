"""Which fleet is the active one: an advisory lock, held by a connection that also listens for wake-ups."""

from __future__ import annotations

import contextlib
import json
import select
import time
from typing import Any

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

from effillm_worker.log import event
from effillm_worker.reports import first_line

LOCK = 0x0EFF1F1
CHANNEL = "effillm"
# A running sweep says these all the time. They never mean work for the fleet, which must not compute beside a measurement.
ROUTINE = frozenset({"job_leased", "job_measured", "job_infeasible", "jobs_implied", "sweep_finished"})


class Leadership:
    """A session of its own in Postgres. The lock ends with the session, so whoever can use the session still has it."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._connection: Connection | None = None
        self._is_held = False

    def is_held(self) -> bool:
        """Whether this fleet is the active one, found out on the connection that holds the lock; tries to become it if not."""
        try:
            connection = self._connected()
            if self._is_held:
                connection.exec_driver_sql("SELECT 1")
            else:
                self._is_held = bool(
                    connection.exec_driver_sql("SELECT pg_try_advisory_lock(%s)", (LOCK,)).scalar_one()
                )
        except SQLAlchemyError as error:
            event("database.away", doing="lead", why=first_line(error))
            self.resign()
        return self._is_held

    def wait(self, seconds: float) -> bool:
        """Wait for news that may mean work, or the time to pass; whether there were any."""
        if self._connection is None:
            select.select([], [], [], seconds)
            return False
        session, until = self._session(self._connection), time.monotonic() + seconds
        try:
            while not _has_news(session) and (left := until - time.monotonic()) > 0:
                select.select([session], [], [], left)
                session.poll()
        except Exception as error:  # noqa: BLE001 - the driver raises its own kinds; the next tick finds out what is wrong
            event("database.away", doing="listen", why=first_line(error))
            self.resign()
            return False
        return _take_news(session)

    def resign(self) -> None:
        """Give up the session and with it the lock."""
        connection, self._connection, self._is_held = self._connection, None, False
        if connection is None:
            return
        # Postgres notices the end of a session a moment later; the next leader need not wait for that.
        with contextlib.suppress(SQLAlchemyError):
            connection.exec_driver_sql("SELECT pg_advisory_unlock_all()")
        with contextlib.suppress(SQLAlchemyError):
            connection.invalidate()
        connection.close()

    def _connected(self) -> Connection:
        if self._connection is None:
            self._connection = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
            self._connection.exec_driver_sql(f"LISTEN {CHANNEL}")
        return self._connection

    @staticmethod
    def _session(connection: Connection) -> Any:
        return connection.connection.driver_connection


def _has_news(session: Any) -> bool:
    """Whether one of the notifications that have come in may mean work; the others are dropped."""
    session.notifies[:] = [notice for notice in session.notifies if _kind(notice.payload) not in ROUTINE]
    return bool(session.notifies)


def _take_news(session: Any) -> bool:
    had_news = _has_news(session)
    session.notifies.clear()
    return had_news


def _kind(payload: str) -> str | None:
    try:
        return str(json.loads(payload)["kind"])
    except (ValueError, TypeError, KeyError):
        return None
