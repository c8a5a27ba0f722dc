"""The thread that takes expired leases back; every API process has one, and they do not get in each other's way."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable
from datetime import UTC, datetime

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
        self, engine: sqlalchemy.Engine, lease_ttl_s: float, *, jitter: Callable[[], float] = random.random
    ) -> None:
        self._engine = engine
        self._lease_ttl_s = lease_ttl_s
        self._interval_s = min(MAX_INTERVAL_S, max(MIN_INTERVAL_S, lease_ttl_s / 12))
        self._jitter = jitter
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.reaped = 0

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="reaper", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
