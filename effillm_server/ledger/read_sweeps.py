"""Sweeps with their progress, from the counters: as cheap for a million jobs as for one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, text

from effillm_server.contract.outcome import InfeasibleReason
from effillm_server.contract.sweep import SweepDefinition
from effillm_server.ledger.leases import RENEWAL
from effillm_server.ledger.transitions import NOW_MS
from effillm_server.lifecycle import DeviceState, JobState, SweepState
from effillm_server.records import Counts, SweepRecord, Viewer

_COUNTED = (*map(str, JobState), *map(str, InfeasibleReason))
_SWEEPS = f"""
SELECT s.*, k.* FROM ({{page}}) s LEFT JOIN LATERAL (
    SELECT {", ".join(f"coalesce(sum({name}), 0)::bigint AS {name}" for name in _COUNTED)},
        coalesce(sum(served_ms) + sum(leased) * {NOW_MS} - sum(leased_since_ms), 0)::bigint AS device_ms
    FROM sweep_counter WHERE sweep_id = s.id
) k ON true
"""
_ONE = text(_SWEEPS.format(page="SELECT * FROM sweep WHERE id = :id"))
_BY_KEY = text(
    _SWEEPS.format(
        page="""
        SELECT * FROM sweep WHERE coalesce(owner, '') = coalesce(:owner, '') AND idempotency_key = :key
    """
    )
)
_PAGE = """
    SELECT * FROM sweep WHERE {seen} {behind} ORDER BY created_at DESC, id DESC LIMIT :limit
"""
_SEEN = "(:everything OR visibility <> 'private' OR owner = :viewer)"
# A cursor that names what is private to others finds nothing, as one that names nothing.
_BEHIND = f"AND (created_at, id) < (SELECT created_at, id FROM sweep WHERE id = :after AND {_SEEN})"
_ORDER = " ORDER BY s.created_at DESC, s.id DESC"
_FIRST = text(_SWEEPS.format(page=_PAGE.format(seen=_SEEN, behind="")) + _ORDER)
_NEXT = text(_SWEEPS.format(page=_PAGE.format(seen=_SEEN, behind=_BEHIND)) + _ORDER)
_WAITING = text("""
SELECT k.hardware, sum(k.pending)::bigint AS jobs FROM sweep s JOIN sweep_counter k ON k.sweep_id = s.id
WHERE s.finished_at IS NULL GROUP BY k.hardware HAVING sum(k.pending) > 0 ORDER BY k.hardware
""")
_TOTALS = text(f"SELECT {', '.join(f'coalesce(sum({s}), 0)::bigint AS {s}' for s in JobState)} FROM sweep_counter")
_REST = text(f"""
SELECT coalesce(sum(times) FILTER (WHERE outcome_digest <> '{RENEWAL}'), 0)::bigint AS rejected_outcomes,
    coalesce(sum(times) FILTER (WHERE outcome_digest = '{RENEWAL}'), 0)::bigint AS rejected_renewals,
    (SELECT coalesce(max(id), 0) FROM event) AS last_event_id
FROM rejected_outcome
""")


def sweep(c: Connection, sweep_id: str) -> SweepRecord | None:
    """The sweep with its progress, None if there is none."""
    row = c.execute(_ONE, {"id": sweep_id}).first()
    return None if row is None else _record(row._asdict())


def sweep_by_key(c: Connection, owner: str | None, key: str) -> SweepRecord | None:
    """The sweep this owner submitted under this idempotency key."""
    row = c.execute(_BY_KEY, {"owner": owner, "key": key}).first()
    return None if row is None else _record(row._asdict())


def sweeps(c: Connection, after: str | None, limit: int, viewer: Viewer | None = None) -> list[SweepRecord]:
    """A page of the sweeps that exist for `viewer` (None: all), newest first, behind the one with the id `after`."""
    values = {"after": after, "limit": limit, "everything": viewer is None or viewer.is_admin}
    rows = c.execute(_FIRST if after is None else _NEXT, values | {"viewer": viewer.owner if viewer else None})
    return [_record(row._asdict()) for row in rows]


def facts(c: Connection, sweep_id: str) -> dict[str, Any] | None:
    """What was resolved for the sweep when it was stored: models with their architecture, hardware, prices."""
    return c.execute(text("SELECT facts FROM sweep WHERE id = :id"), {"id": sweep_id}).scalar()


def waiting_classes(c: Connection) -> dict[str, int]:
    """Pending jobs of unfinished sweeps by the hardware class they wait for."""
    return {row.hardware: row.jobs for row in c.execute(_WAITING)}


def counts(c: Connection) -> Counts:
    """Totals of the ledger."""
    jobs = c.execute(_TOTALS).mappings().one()
    states = c.execute(text("SELECT state, count(*) AS devices FROM device GROUP BY state"))
    devices = {row.state: int(row.devices) for row in states}
    rest = c.execute(_REST).one()
    return Counts(
        jobs={state: int(jobs[state]) for state in JobState},
        devices={state: devices.get(state, 0) for state in DeviceState},
        rejected_outcomes=rest.rejected_outcomes,
        rejected_renewals=rest.rejected_renewals,
        last_event_id=rest.last_event_id,
    )


def _record(row: Mapping[str, Any]) -> SweepRecord:
    by_state = {state: int(row[state]) for state in JobState}
    return SweepRecord(
        id=row["id"], name=row["name"], definition=SweepDefinition.model_validate(row["definition"]),
        priority=row["priority"], owner=row["owner"], visibility=row["visibility"], created_at=row["created_at"],
        cancelled_at=row["cancelled_at"], state=_state(by_state, is_cancelled=row["cancelled_at"] is not None),
        total=row["total"], counts=by_state, reasons={reason: int(row[reason]) for reason in InfeasibleReason},
        finished_at=row["finished_at"], device_seconds=row["device_ms"] / 1000,
    )  # fmt: skip


def _state(by_state: Mapping[JobState, int], *, is_cancelled: bool) -> SweepState:
    if by_state[JobState.PENDING] + by_state[JobState.LEASED] == 0:
        return SweepState.CANCELLED if is_cancelled else SweepState.FINISHED
    ran = by_state[JobState.LEASED] + by_state[JobState.MEASURED] + by_state[JobState.FAILED]
    return SweepState.RUNNING if ran else SweepState.PENDING
