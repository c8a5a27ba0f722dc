"""What a node says about the lab's Postgres when it starts, in its own log: its actors' logs are Ray's, where nobody looks first."""

from __future__ import annotations

from sqlalchemy.exc import OperationalError

from effillm_server.ledger import queue
from effillm_server.ledger.clock import clock_off
from effillm_server.ledger.engine import connect, unreachable
from effillm_worker.log import event


def check_ledger(url: str) -> None:
    """Says when Postgres does not answer this box, or their clocks differ. Raises BadInput when `url` cannot be read.

    Neither keeps the node from joining: its actors go on trying, and leases go by the database's clock.
    """
    engine = connect(url, "worker")
    try:
        with engine.connect() as connection:
            off = clock_off(queue.database_time(connection))
        if off is not None:
            event("clock.off", **off)
    except OperationalError as error:
        event("database.away", doing="start", why=unreachable(url, error))
    finally:
        engine.dispose()
