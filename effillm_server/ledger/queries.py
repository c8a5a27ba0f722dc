"""Every read of the ledger, as the frozen values of `records`. Pages are by key, never by offset."""

from __future__ import annotations

from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from effillm_server.ledger.engine import configuration
from effillm_server.ledger.explain import explain
from effillm_server.ledger.read_devices import device, devices, known_hardware
from effillm_server.ledger.read_events import events, last_event_id
from effillm_server.ledger.read_figures import queue_age_s
from effillm_server.ledger.read_grid import extremes, grid, served
from effillm_server.ledger.read_jobs import attempts, frontier, job, jobs
from effillm_server.ledger.read_results import beside, result, results
from effillm_server.ledger.read_sweeps import counts, facts, sweep, sweep_by_key, sweeps, waiting_classes

__all__ = [
    "attempts",
    "beside",
    "counts",
    "device",
    "devices",
    "events",
    "explain",
    "extremes",
    "facts",
    "frontier",
    "grid",
    "job",
    "jobs",
    "known_hardware",
    "last_event_id",
    "queue_age_s",
    "ready",
    "result",
    "results",
    "served",
    "sweep",
    "sweep_by_key",
    "sweeps",
    "waiting_classes",
]


def ready(c: Connection) -> bool:
    """Whether the database has the schema this code was written for."""
    head = ScriptDirectory.from_config(configuration()).get_current_head()
    return MigrationContext.configure(c).get_current_revision() == head
