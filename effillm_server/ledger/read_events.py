"""The event stream, in an order in which nothing appears late."""

from __future__ import annotations

from sqlalchemy import Connection, text

from effillm_server.ledger.journal import EVENT_LOCK_CLASS
from effillm_server.records import EventRecord

# Ids are drawn before their transactions commit, so a smaller id may become visible after a larger one. A writer holds
# an advisory lock that names a lower bound of its ids until it has committed. What lies below every such bound, and was
# drawn before we looked, is settled. A lock keeps only 32 bits of the bound; it lies within 2^31 of the last id.
_SETTLED = text(f"""
WITH drawn AS MATERIALIZED (SELECT last_value AS last FROM event_id_seq),
bounds AS (
    SELECT min(top - ((top - l.objid::bigint) & 4294967295)) AS bound
    FROM (SELECT last + 2147483648 AS top FROM drawn) t, pg_locks l
    WHERE l.locktype = 'advisory' AND l.classid = {EVENT_LOCK_CLASS} AND l.objsubid = 1
        AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
)
SELECT least(drawn.last, bounds.bound - 1) FROM drawn, bounds
""")
_EVENTS = """
SELECT e.id, e.sweep_id, e.job_id, e.kind, e.at, e.data, s.owner, s.visibility
FROM event e LEFT JOIN sweep s ON s.id = e.sweep_id
WHERE e.id > :after AND e.id <= :settled {sweep} ORDER BY e.id LIMIT :limit
"""
_ALL = text(_EVENTS.format(sweep=""))
_OF_SWEEP = text(_EVENTS.format(sweep="AND e.sweep_id = :sweep"))


def events(c: Connection, after_id: int, limit: int, sweep_id: str | None = None) -> list[EventRecord]:
    """Events behind `after_id`, in order; none with a smaller id than the last one returned can still appear."""
    # Two statements: the second one's snapshot must be younger than the look at the locks.
    settled = c.execute(_SETTLED).scalar_one()
    values = {"after": after_id, "settled": settled, "limit": limit, "sweep": sweep_id}
    rows = c.execute(_ALL if sweep_id is None else _OF_SWEEP, values)
    return [EventRecord(**row._asdict()) for row in rows]


def last_event_id(c: Connection) -> int:
    """Id behind which a stream that starts now goes on; 0 when there is no event yet."""
    settled = c.execute(_SETTLED).scalar_one()
    last = text("SELECT coalesce(max(id), 0) FROM event WHERE id <= :settled")
    return int(c.execute(last, {"settled": settled}).scalar_one())
