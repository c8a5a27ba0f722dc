"""What a transaction changes in the counters and tells the world, collected and written last.

Counters are the only rows two devices share. Writing them at the end, sorted, keeps their locks short and taken in one
order, so that transactions cannot lock each other out.
"""

from __future__ import annotations

import json
import zlib
from collections import defaultdict
from typing import Any

from sqlalchemy import Connection

from effillm_server.contract.outcome import InfeasibleReason
from effillm_server.ledger.prepared import Statement
from effillm_server.lifecycle import JobState

CHANNEL = "effillm"
SHARDS = 16
# Class of the advisory locks that writers of events hold; see queries.events.
EVENT_LOCK_CLASS = 0x4556
# Postgres commits transactions that notify one after the other, each with its own write to disk. So that devices do not
# queue up behind that, of all transactions that only move jobs at one moment a single one notifies: it holds this lock. A
# listener then looks and sees most of the others; who is alone is always announced; who is missed is found by polling.
NOTIFY_LOCK = 0x4557 << 32

# Device time loses half of its weight in this time when it is asked whose turn it is: without that a sweep that has
# measured for a day would wait a day for every one that comes after it.
HALF_LIFE_S = 600.0
# Beyond so many half-lives nothing is left, and Postgres refuses results that are smaller than a number can be.
MOST_HALF_LIVES = 60


def faded(value: str, ms: str) -> str:
    """SQL: device time `value` as it weighs `ms` milliseconds later."""
    return f"{value} * power('0.5'::float8, least(({ms}) / '{HALF_LIFE_S * 1000:g}'::float8, {MOST_HALF_LIVES}))"


_COUNTED = (*map(str, JobState), *map(str, InfeasibleReason), "served_ms", "leased_since_ms")
_FADED = f"""
    recent_ms = {faded("greatest(k.recent_ms, 1)", "greatest(excluded.recent_at_ms - k.recent_at_ms, 0)")}
        + {faded("excluded.recent_ms", "greatest(k.recent_at_ms - excluded.recent_at_ms, 0)")},
    recent_at_ms = greatest(k.recent_at_ms, excluded.recent_at_ms)
"""
# The writer of events first locks a lower bound of the ids it is about to draw, and holds it until it has committed: a
# reader can then tell ids that will never appear from ids that are still to come.
_FLUSH = Statement(
    "flush",
    f"""
WITH counted AS (
    INSERT INTO sweep_counter AS k (sweep_id, hardware, shard, {", ".join(_COUNTED)}, recent_ms, recent_at_ms)
    SELECT sweep_id, hardware, :shard, {", ".join(f"coalesce({name}, 0)" for name in _COUNTED)},
        coalesce(served_ms, 0), coalesce(recent_at_ms, 0)
    FROM json_to_recordset(:counts)
        AS x (sweep_id text, hardware text, {", ".join(f"{name} bigint" for name in (*_COUNTED, "recent_at_ms"))})
    ORDER BY sweep_id, hardware
    ON CONFLICT (sweep_id, hardware, shard)
        DO UPDATE SET {", ".join(f"{name} = k.{name} + excluded.{name}" for name in _COUNTED)}, {_FADED}
), told AS MATERIALIZED (
    SELECT * FROM json_to_recordset(:events) AS x (sweep text, job bigint, kind text, data jsonb)
), bound AS MATERIALIZED (
    SELECT pg_advisory_xact_lock_shared(
        ({EVENT_LOCK_CLASS}::bigint << 32) | ((last_value + is_called::int) & 4294967295)
    ) FROM event_id_seq
), stored AS (
    INSERT INTO event (sweep_id, job_id, kind, data) SELECT sweep, job, kind, data FROM bound CROSS JOIN told
)
SELECT pg_notify('{CHANNEL}', payload) FROM unnest(:payloads) payload
WHERE :always OR pg_try_advisory_xact_lock({NOTIFY_LOCK})
""",
    shard="smallint",
    counts="json",
    events="json",
    payloads="text[]",
    always="boolean",
)


def shard_of(device_id: str) -> int:
    """The counter shard of a device: its own as far as sixteen go."""
    return zlib.crc32(device_id.encode()) % SHARDS


class Journal:
    """Changes of one transaction to the counters, and its events. `flush` writes them; nothing is kept after it."""

    def __init__(self, device_id: str | None = None) -> None:
        self._shard = 0 if device_id is None else shard_of(device_id)
        self._counts: defaultdict[tuple[str, str], defaultdict[str, int]] = defaultdict(lambda: defaultdict(int))
        self._events: list[dict[str, Any]] = []

    def move(
        self,
        sweep_id: str,
        hardware: str,
        before: JobState | None,
        after: JobState,
        reason: str | None = None,
        jobs: int = 1,
    ) -> None:
        """Jobs went from one state to another (None: they are new); `reason` counts the infeasible ones."""
        counts = self._counts[sweep_id, hardware]
        if before is not None:
            counts[before] -= jobs
        counts[after] += jobs
        if after is JobState.INFEASIBLE and reason is not None:
            counts[reason] += jobs

    def lease_began(self, sweep_id: str, hardware: str, leased_ms: int) -> None:
        self._counts[sweep_id, hardware]["leased_since_ms"] += leased_ms

    def lease_ended(self, sweep_id: str, hardware: str, leased_ms: int, ended_ms: int) -> None:
        counts = self._counts[sweep_id, hardware]
        counts["leased_since_ms"] -= leased_ms
        counts["served_ms"] += max(0, ended_ms - leased_ms)
        counts["recent_at_ms"] = max(counts["recent_at_ms"], ended_ms)

    def event(self, kind: str, sweep_id: str | None = None, job_id: int | None = None, **data: Any) -> None:
        self._events.append({"kind": kind, "sweep": sweep_id, "job": job_id, "data": data})

    def flush(self, c: Connection) -> None:
        """Write the counters, sorted, and the events with their notifications."""
        if not self._counts and not self._events:
            return
        counts = [
            {"sweep_id": sweep_id, "hardware": hardware} | {name: n for name, n in changes.items() if n}
            for (sweep_id, hardware), changes in self._counts.items()
        ]
        values = {
            "shard": self._shard,
            "counts": json.dumps(counts),
            "events": json.dumps(self._events),
            "payloads": sorted({_payload(event) for event in self._events}),
            "always": not all(event["kind"].startswith("job_") for event in self._events),
        }
        _FLUSH.count(c, values)
        self._counts.clear()
        self._events.clear()


def _payload(event: dict[str, Any]) -> str:
    return json.dumps({key: event[key] for key in ("kind", "sweep", "job")}, separators=(",", ":"))
