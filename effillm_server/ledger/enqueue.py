"""A sweep and all its jobs, stored together or not at all."""

from __future__ import annotations

import json
import secrets
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from sqlalchemy import Connection, text

from effillm_server.contract.job import Cell
from effillm_server.contract.outcome import InfeasibleReason
from effillm_server.contract.sweep import SweepDefinition
from effillm_server.errors import Conflict
from effillm_server.ledger.copying import copy_rows
from effillm_server.ledger.journal import Journal
from effillm_server.lifecycle import JobState

_COLUMNS = (
    "sweep_id", "ordinal", "digest", "model", "weights", "revision", "quantization", "dtype", "engine", "runtime",
    "hardware", "batch_size", "sequence_length", "workload", "generate_tokens", "repeat", "size", "load_group",
    "priority", "state", "reason", "message", "finished_at",
)  # fmt: skip
_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"

# A concurrent submission with the same key waits here until the other has committed or rolled back.
_INSERT = text("""
INSERT INTO sweep (id, name, definition, facts, priority, owner, visibility, isolation, idempotency_key)
VALUES (:id, :name, CAST(:definition AS jsonb), CAST(:facts AS jsonb), :priority, :owner, :visibility, :isolation, :key)
ON CONFLICT (coalesce(owner, ''), idempotency_key) WHERE idempotency_key IS NOT NULL DO NOTHING
RETURNING created_at
""")
_EXISTING = text("""
SELECT id, total, definition = CAST(:definition AS jsonb) AS is_same FROM sweep
WHERE coalesce(owner, '') = coalesce(:owner, '') AND idempotency_key = :key
""")


class Planned(Protocol):
    """A cell of the matrix on its way into the ledger; expand.PlannedCell is one."""

    @property
    def ordinal(self) -> int: ...
    @property
    def cell(self) -> Cell: ...
    @property
    def digest(self) -> str: ...
    @property
    def infeasible(self) -> tuple[InfeasibleReason, str] | None: ...


@dataclass(frozen=True)
class NewSweep:
    """A sweep about to be stored. `facts` is what was resolved for it: models with their architecture, hardware, prices."""

    id: str
    definition: SweepDefinition
    owner: str | None = None
    idempotency_key: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)


def new_sweep_id() -> str:
    """A short random id, 60 bits, no letters that look like digits: s3k7m0c9w2x1a."""
    return "s" + "".join(secrets.choice(_ALPHABET) for _ in range(12))


def enqueue(c: Connection, sweep: NewSweep, planned: Iterable[Planned]) -> int:
    """Number of jobs of the sweep, now stored.

    A sweep of this owner and idempotency key that exists already is left as it is and its number of jobs returned;
    `queries.sweep_by_key` finds its id. Raises Conflict when that one has another definition.
    """
    definition = sweep.definition.model_dump_json(exclude_defaults=False)
    values = {
        "id": sweep.id, "name": sweep.definition.name, "definition": definition, "facts": json.dumps(sweep.facts),
        "priority": sweep.definition.priority, "owner": sweep.owner, "visibility": sweep.definition.visibility,
        "isolation": sweep.definition.isolation, "key": sweep.idempotency_key,
    }  # fmt: skip
    created_at = c.execute(_INSERT, values).scalar()
    if created_at is None:
        return _existing(c, values)
    journal = Journal()
    moved: Counter[tuple[str, InfeasibleReason | None]] = Counter()
    total = copy_rows(c, "job", _COLUMNS, _rows(sweep, planned, created_at.isoformat(), moved))
    for (hardware, reason), jobs in moved.items():
        journal.move(sweep.id, hardware, None, JobState.INFEASIBLE if reason else JobState.PENDING, reason, jobs)
    is_done = all(reason is not None for _, reason in moved)
    c.execute(
        text("UPDATE sweep SET total = :total, finished_at = CASE WHEN :done THEN created_at END WHERE id = :id"),
        {"id": sweep.id, "total": total, "done": is_done},
    )
    journal.event("sweep_created", sweep.id, jobs=total, name=sweep.definition.name)
    if is_done:
        journal.event("sweep_finished", sweep.id)
    journal.flush(c)
    return total


def _existing(c: Connection, values: dict[str, Any]) -> int:
    found = c.execute(_EXISTING, values).mappings().one()
    if not found["is_same"]:
        raise Conflict(
            f"the idempotency key {values['key']!r} belongs to sweep {found['id']}, whose definition is another: "
            "use a new key for a new sweep"
        )
    return int(found["total"])


def _rows(
    sweep: NewSweep, planned: Iterable[Planned], created_at: str, moved: Counter[tuple[str, InfeasibleReason | None]]
) -> Iterator[tuple[Any, ...]]:
    priority = sweep.definition.priority
    group, group_key = "", None
    for plan in planned:
        cell = plan.cell
        key = (
            cell.hardware, cell.runtime, cell.engine, cell.model, cell.weights, cell.revision, cell.quantization,
            cell.dtype, cell.repeat,
        )  # fmt: skip
        if key != group_key:  # groups are contiguous, so their digest is computed once each
            group, group_key = cell.load_group(sweep.id), key
        reason, message = plan.infeasible or (None, None)
        moved[cell.hardware, reason] += 1
        yield (
            sweep.id, plan.ordinal, plan.digest, cell.model, cell.weights.value, cell.revision, cell.quantization,
            cell.dtype, cell.engine.value, cell.runtime, cell.hardware, cell.batch_size, cell.sequence_length,
            cell.workload, cell.generate_tokens, cell.repeat, cell.size, group, priority,
            "infeasible" if reason else "pending", reason, message, created_at if reason else None,
        )  # fmt: skip
