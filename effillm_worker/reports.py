"""What an actor tells the ledger: outcomes by way of the spool, tried until the ledger answers."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError, InterfaceError, InternalError, OperationalError, TimeoutError

from effillm_server.contract.job import Lease
from effillm_server.contract.outcome import Fault, FaultKind, Outcome
from effillm_server.ledger import queue
from effillm_server.records import Finished
from effillm_worker.log import event
from effillm_worker.spool import Spool, Spooled, SpoolFull

T = TypeVar("T")
# Away, restarting, out of connections, or told to end us: worth another try. Anything else is our own mistake.
AWAY = (OperationalError, InterfaceError, InternalError, TimeoutError)
FIRST_RETRY_S = 0.2
LONGEST_RETRY_S = 5.0


class Stopping(Exception):
    """The actor is being stopped; what is spooled stays for the next one."""


@dataclass(frozen=True)
class Identity:
    """The device and this actor's life on it."""

    device_id: str
    boot_id: str


class Reports:
    """Delivers outcomes of one device. `stopping` ends all waiting."""

    def __init__(self, engine: Engine, spool: Spool, who: Identity, stopping: threading.Event) -> None:
        self._engine = engine
        self._spool = spool
        self._who = who
        self._stopping = stopping

    def deliver(self, lease: Lease, outcome: Outcome, next_lease: queue.LeaseRequest | None) -> Finished:
        """Hand over an outcome and take the next lease in the same transaction. Raises Stopping."""
        who = self._who
        entry = Spooled(
            device_id=who.device_id, boot_id=who.boot_id, job_id=lease.job_id, fence=lease.fence, outcome=outcome
        )
        try:
            self._spool.add(entry)
        except SpoolFull as error:
            # Without a disk the outcome lives only in this process, and still reaches a ledger that answers.
            event("spool.full", job=lease.job_id, fence=lease.fence, device=who.device_id, why=str(error))
        finished = self._finish(entry, next_lease)
        self._spool.remove(entry)
        return finished

    def replay(self) -> None:
        """Hand over what an earlier life of this device left in the spool. Raises Stopping."""
        for entry in self._spool.entries():
            finished = self._finish(entry, None)
            self._spool.remove(entry)
            event(
                "spool.replayed", job=entry.job_id, fence=entry.fence, device=entry.device_id, taken=finished.accepted
            )

    def persist(self, doing: str, action: Callable[[Connection], T]) -> T:
        """The result of `action` in a transaction of its own, tried again while the database is away. Raises Stopping."""
        delay = FIRST_RETRY_S
        while True:
            try:
                with self._engine.begin() as connection:
                    return action(connection)
            except AWAY as error:
                event("database.away", device=self._who.device_id, doing=doing, why=first_line(error), retry_s=delay)
            if self._stopping.wait(delay * random.uniform(0.5, 1.0)):  # noqa: S311 - spreads retries, guards nothing
                raise Stopping
            delay = min(delay * 2, LONGEST_RETRY_S)

    def _finish(self, entry: Spooled, next_lease: queue.LeaseRequest | None) -> Finished:
        def finish(connection: Connection, outcome: Outcome = entry.outcome) -> Finished:
            return queue.finish(
                connection, entry.device_id, entry.boot_id, entry.job_id, entry.fence, outcome, random.random(), next_lease  # noqa: S311
            )  # fmt: skip

        try:
            return self.persist("finish", finish)
        except DBAPIError as error:
            # The outcome itself cannot be stored. Its job must not wait for it for ever: the attempt counts as broken.
            event("outcome.unstorable", job=entry.job_id, fence=entry.fence, device=entry.device_id, why=str(error))
            broken = Fault(fault=FaultKind.CRASHED, message=f"its outcome cannot be stored: {first_line(error)}")
            return self.persist("finish", lambda connection: finish(connection, broken))


def first_line(error: Exception) -> str:
    """The error in one line, without SQLAlchemy's statement and parameters."""
    origin = getattr(error, "orig", None) or error
    return (str(origin).strip() or type(origin).__name__).splitlines()[0]
