"""The thread that keeps a device's lease alive, says that the device lives, and learns what is to be cancelled."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from effillm_server.ledger import queue
from effillm_worker.log import event
from effillm_worker.reports import Identity, first_line

PER_TTL = 6


class Renewal(threading.Thread):
    """Renews every TTL/6. A lost lease is only reported: the measurement goes on and is delivered under its own fence."""

    def __init__(
        self,
        engine: Engine,
        who: Identity,
        ttl_s: float,
        held: Callable[[], Sequence[tuple[int, int]]],
        cancel: Callable[[int, int], bool],
    ) -> None:
        super().__init__(name="renewal", daemon=True)
        self._engine = engine
        self._who = who
        self._ttl_s = ttl_s
        self._held = held
        self._cancel = cancel
        self._due = threading.Event()
        self._stopped = False
        self._lost: set[tuple[int, int]] = set()

    def run(self) -> None:
        while not self._stopped:
            self._due.wait(self._ttl_s / PER_TTL)
            self._due.clear()
            if not self._stopped:
                self._renew()

    def now(self) -> None:
        """Renew without waiting for the next turn."""
        self._due.set()

    def stop(self) -> None:
        self._stopped = True
        self._due.set()

    def _renew(self) -> None:
        who, held = self._who, tuple(self._held())
        try:
            with self._engine.begin() as connection:
                # A renewal is a sign of life too.
                if held:
                    renewal = queue.renew(connection, who.device_id, who.boot_id, held, self._ttl_s)
                else:
                    queue.heartbeat(connection, who.device_id, who.boot_id)
        except SQLAlchemyError as error:
            event("renewal.failed", device=who.device_id, held=held, why=first_line(error))
            return
        if not held:
            return
        for job_id, fence in renewal.to_cancel:
            if self._cancel(job_id, fence):
                event("cell.cancel", job=job_id, fence=fence, device=who.device_id)
        # Between our question and the answer the lane may have finished the job, which is no loss.
        lost = set(renewal.lost) & set(self._held())
        for job_id, fence in lost - self._lost:
            event("lease.lost", job=job_id, fence=fence, device=who.device_id)
        self._lost = lost
