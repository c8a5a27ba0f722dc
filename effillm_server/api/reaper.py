"""The thread that takes expired leases back; every API process has one, and they do not get in each other's way."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable
from datetime import datetime, timedelta

import sqlalchemy

from effillm_server.ledger import queue

MIN_INTERVAL_S = 0.2
MAX_INTERVAL_S = 5.0
log = logging.getLogger("effillm.api")


class Reaper:
    """Reaps every twelfth of a lease's time to live.

    The first reap is not before one time to live after the start of this process and of the database: while either was
    away nobody could renew, and a holder gets the whole time to come back.
    """

    def __init__(
        self,
        engine: sqlalchemy.Engine,
        lease_ttl_s: float,
        *,
        on_reaped: Callable[[int], None] = lambda _: None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._engine = engine
        self._lease_ttl_s = lease_ttl_s
        self._interval_s = min(MAX_INTERVAL_S, max(MIN_INTERVAL_S, lease_ttl_s / 12))
        self._on_reaped = on_reaped
        self._jitter = jitter
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="reaper", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        not_before: datetime | None = None
        while not self._stop.is_set():
            taken: list[tuple[int, int]] = []
            try:
                with self._engine.begin() as connection:
                    if not_before is None:
                        not_before = queue.database_time(connection) + timedelta(seconds=self._lease_ttl_s)
                    taken = queue.reap(connection, self._jitter, not_before)
            except sqlalchemy.exc.SQLAlchemyError as error:
                log.warning("reaper_database_away", extra={"error": type(error).__name__})
            except Exception:  # the edge of the thread: without it no lease would ever be taken back again
                log.exception("reaper_failed")
            self._on_reaped(len(taken))
            for job_id, fence in taken:
                log.warning("lease_lost", extra={"job": job_id, "fence": fence})
            self._stop.wait(self._interval_s)
