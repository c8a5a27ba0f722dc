"""Which job a free device runs next, and the lease on it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, RowMapping, text

from effillm_server.contract.job import Lease
from effillm_server.contract.quality import QualityPlan
from effillm_server.contract.sweep import Isolation, MeasurementPlan
from effillm_server.ledger.journal import Journal, faded
from effillm_server.ledger.prepared import Statement
from effillm_server.ledger.rows import cell_columns, cell_of
from effillm_server.ledger.transitions import LEASED_MS, NOW_MS
from effillm_server.lifecycle import JobState

# Of its device time no more than this counts against a sweep, whatever it had on however many devices.
MOST_COUNTED_S = 600.0
# A second without any device makes up for so many seconds with one. Fading alone would not do: who never was served would
# still come before who was long ago. With it a quarter of an hour of waiting comes before everybody who comes new.
WAITING_WEIGHT = 0.25

# The device, locked, and the sweeps that wait for its class, straight from the counters: highest priority first, then by
# how far each is ahead, which is its device time on the class, in flight included and faded by age, less what it waited.
_LOOK = Statement(
    "look",
    f"""
WITH d AS MATERIALIZED (SELECT *, {NOW_MS} AS now_ms FROM device WHERE id = :device FOR NO KEY UPDATE)
SELECT d.id, d.hardware_class, d.state, d.boot_id, d.declared, d.node, d.load_group, d.load_sweep,
    extract(epoch FROM clock_timestamp() - d.load_since)::double precision AS load_age_s, w.id AS sweep, w.priority,
    EXISTS (
        SELECT FROM device o WHERE o.hardware_class = d.hardware_class AND o.id <> d.id AND o.declared = d.declared
            AND o.state IN ('free', 'leased', 'releasing')
    ) AS has_neighbour
FROM d LEFT JOIN LATERAL (
    SELECT s.id, s.priority, s.created_at, sum(k.leased) AS leased,
        least({faded(f"{MOST_COUNTED_S * 1000:g}", "CASE WHEN sum(k.leased) > 0 THEN 0 ELSE d.now_ms - max(k.recent_at_ms) END")},
            sum({faded("k.recent_ms", "greatest(d.now_ms - k.recent_at_ms, 0)")})
                + sum(k.leased) * d.now_ms - sum(k.leased_since_ms))
            - CASE WHEN sum(k.leased) > 0 THEN 0 ELSE {WAITING_WEIGHT} * greatest(0, d.now_ms - greatest(
                max(k.recent_at_ms), (extract(epoch FROM s.created_at) * 1000)::bigint
            )) END AS ahead_ms
    FROM sweep s JOIN sweep_counter k ON k.sweep_id = s.id AND k.hardware = d.hardware_class
    WHERE s.finished_at IS NULL GROUP BY s.id, d.now_ms HAVING sum(k.pending) > 0
) w ON d.state = 'free'
ORDER BY w.priority DESC, w.ahead_ms, w.leased, w.created_at, w.id
""",
    device="text",
)
_MINE = f"""
SELECT j.id AS job_id, j.sweep_id, j.fence, j.faults, j.load_group, j.fresh_child, j.lease_ttl_s,
    {LEASED_MS.replace("leased_at", "j.leased_at")} AS leased_ms, {cell_columns("j")},
    s.definition->'measurement' AS plan, s.definition->'quality' AS quality, s.isolation
"""
_GRANTED = text(f"""
{_MINE} FROM lease_device l JOIN job j ON j.id = l.job_id AND j.fence = l.fence JOIN sweep s ON s.id = j.sweep_id
WHERE l.device_id = :device AND l.boot_id = :boot AND j.state = 'leased'
""")
# Materialised and locked before it is updated: otherwise the planner may run the LIMIT again for each row it joins.
_CLAIM = f"""
WITH pick AS MATERIALIZED (
    SELECT id FROM job
    WHERE sweep_id = :sweep AND hardware = :hardware AND state = 'pending' {{place}}
        AND (not_before IS NULL OR not_before <= statement_timestamp())
        AND (avoid_device IS DISTINCT FROM :device OR NOT :has_neighbour)
    ORDER BY priority DESC, load_group, size, ordinal LIMIT 1
    FOR NO KEY UPDATE SKIP LOCKED
), j AS (
    UPDATE job SET state = 'leased', fence = fence + 1, device_id = :device, boot_id = :boot, not_before = NULL,
        leased_at = clock_timestamp(), lease_ttl_s = :ttl_s,
        lease_expires_at = clock_timestamp() + make_interval(secs => :ttl_s)
    FROM pick WHERE job.id = pick.id AND job.state = 'pending'
    RETURNING job.*
), held AS (
    INSERT INTO lease_device (device_id, job_id, fence, boot_id) SELECT :device, id, fence, :boot FROM j
), tried AS (
    INSERT INTO attempt (job_id, fence, device_id, node, boot_id) SELECT id, fence, :device, :node, :boot FROM j
), taken AS (
    UPDATE device SET state = 'leased', reason = NULL, state_since = clock_timestamp(), last_seen = clock_timestamp(),
        load_since = CASE WHEN j.load_group = :held_group THEN coalesce(load_since, j.leased_at) ELSE j.leased_at END,
        load_group = j.load_group, load_sweep = j.sweep_id
    FROM j WHERE device.id = :device
)
{_MINE} FROM j JOIN sweep s ON s.id = j.sweep_id
"""
# The next group behind those other devices of the class are at: each loads a model of its own while there are enough.
_BEHIND_OTHERS = """AND priority = :priority AND load_group > (
    SELECT max(load_group) FROM device WHERE hardware_class = :hardware AND load_sweep = :sweep AND state = 'leased'
        AND id <> :device
)"""
_PLACES = {
    "held group": "AND priority = :priority AND load_group = :held_group",
    "behind others": _BEHIND_OTHERS,
    "anywhere": "",
}
_CLAIM_TYPES = {
    "sweep": "text", "hardware": "text", "device": "text", "boot": "text", "node": "text", "has_neighbour": "boolean",
    "ttl_s": "double precision", "held_group": "text",
}  # fmt: skip


def _claims(engine: str, condition: str) -> dict[str, Statement]:
    return {
        name: Statement(
            f"claim_{engine}_{name.replace(' ', '_')}",
            _CLAIM.format(place=f"{place} {condition}"),
            **(_CLAIM_TYPES | ({"priority": "smallint"} if ":priority" in place else {})),
        )
        for name, place in _PLACES.items()
    }


_CLAIM_ANY = _claims("any", "")
_CLAIM_SIMULATED = _claims("simulated", "AND engine = 'simulated'")


@dataclass(frozen=True)
class LeaseRequest:
    """A device asks for work. `held_group` is the load group its child has loaded, if one is alive.

    The group's age is counted by the database from its first lease: `held_since`, the caller's clock, is for its own log.
    Raises ValueError unless `ttl_s` is a finite time above 0: such a lease would have lapsed before it was granted.
    """

    device_id: str
    boot_id: str
    ttl_s: float
    group_max_age_s: float = 600.0
    held_group: str | None = None
    held_since: datetime | None = None

    def __post_init__(self) -> None:
        if not 0 < self.ttl_s < math.inf:
            raise ValueError(f"a lease lives for a finite time above 0 s, found {self.ttl_s:g}")


def lease(c: Connection, request: LeaseRequest) -> Lease | None:
    """The lease this device holds, new or, asked again by the same boot, the one granted before. None: nothing to do.

    Locks the device row, so a device is leased once however many ask. A draining, quarantined, lost or releasing device
    gets nothing, nor does a boot that is not the one registered.
    """
    journal = Journal(request.device_id)
    granted = lease_in(c, journal, request)
    journal.flush(c)
    return granted


def lease_in(c: Connection, journal: Journal, request: LeaseRequest) -> Lease | None:
    """As `lease`, leaving counters and events in the caller's journal."""
    found = _LOOK(c, {"device": request.device_id})
    if not found or found[0]["boot_id"] != request.boot_id:
        return None
    device = found[0]
    if device["state"] == "leased":
        row = c.execute(_GRANTED, {"device": request.device_id, "boot": request.boot_id}).mappings().first()
        return None if row is None else _lease(row, request.device_id)
    if device["state"] != "free":
        return None
    sweeps = [(row["sweep"], row["priority"]) for row in found if row["sweep"] is not None]
    return _claim(c, journal, request, device, sweeps)


def _claim(
    c: Connection, journal: Journal, request: LeaseRequest, device: Mapping[str, Any], sweeps: list[tuple[str, int]]
) -> Lease | None:
    claims = _CLAIM_SIMULATED if device["declared"] else _CLAIM_ANY
    # A group is held while the child that has it loaded is alive.
    held_sweep = device["load_sweep"] if request.held_group == device["load_group"] else None
    age_s = device["load_age_s"] or 0.0
    common = {
        "device": device["id"], "hardware": device["hardware_class"], "node": device["node"], "boot": request.boot_id,
        "ttl_s": request.ttl_s, "has_neighbour": device["has_neighbour"], "held_group": request.held_group,
    }  # fmt: skip
    for sweep_id, priority, place in _places(sweeps, held_sweep, may_keep=age_s < request.group_max_age_s):
        for row in claims[place](c, common | {"sweep": sweep_id, "priority": priority}):
            journal.move(row["sweep_id"], row["hardware"], JobState.PENDING, JobState.LEASED)
            journal.lease_began(row["sweep_id"], row["hardware"], row["leased_ms"])
            journal.event("job_leased", row["sweep_id"], row["job_id"], device=request.device_id, fence=row["fence"])
            return _lease(row, request.device_id)
    return None


def _places(sweeps: list[tuple[str, int]], held_sweep: str | None, *, may_keep: bool) -> Iterator[tuple[str, int, str]]:
    """Where to look, in order: (sweep, priority, place). `sweeps` come by priority, then by how far they are ahead."""
    if not sweeps:
        return
    top = sweeps[0][1]
    kept = [s for s in sweeps if s[0] == held_sweep and s[1] == top] if may_keep else []
    for sweep_id, priority in kept:
        yield sweep_id, priority, "held group"
    for sweep_id, priority in sweeps:
        if sweep_id == held_sweep and not kept:
            yield sweep_id, priority, "held group"
        yield sweep_id, priority, "behind others"
        yield sweep_id, priority, "anywhere"


def _lease(row: Mapping[str, Any] | RowMapping, device_id: str) -> Lease:
    return Lease(
        job_id=row["job_id"], sweep_id=row["sweep_id"], fence=row["fence"], device_id=device_id,
        attempt=row["faults"] + 1, cell=cell_of(row), plan=MeasurementPlan.model_validate(row["plan"]),
        load_group=row["load_group"], isolation=Isolation(row["isolation"]), fresh_child=row["fresh_child"],
        quality=None if row["quality"] is None else QualityPlan.model_validate(row["quality"]),
        ttl_s=row["lease_ttl_s"],
    )  # fmt: skip
