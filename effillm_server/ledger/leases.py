"""A lease while it runs: renewed by its actor, or lapsed and taken back."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, text

from effillm_server.contract.outcome import FaultKind
from effillm_server.ledger.journal import Journal
from effillm_server.ledger.prepared import Statement
from effillm_server.ledger.sweeps import settle_all
from effillm_server.ledger.transitions import HELD, Ending, Held, end_lease
from effillm_server.lifecycle import DeviceState, History, after_fault
from effillm_server.records import Renewal

REAP_AT_ONCE = 500
# Stands in `rejected_outcome` where an outcome's digest would: what was refused is a renewal.
RENEWAL = "renewal"

# The device after its jobs, as everybody locks them, or a renewal would meet a finish head-on: it waits for their count.
_RENEW = Statement(
    "renew",
    """
WITH asked AS (
    SELECT * FROM unnest(:jobs, :fences) AS a (job_id, fence)
), kept AS (
    UPDATE job SET lease_expires_at = clock_timestamp() + make_interval(secs => :ttl_s), lease_ttl_s = :ttl_s
    FROM asked WHERE job.id = asked.job_id AND job.fence = asked.fence AND job.state = 'leased'
        AND job.device_id = :device AND job.boot_id = :boot
    RETURNING job.id, job.fence
), seen AS (
    UPDATE device SET last_seen = clock_timestamp()
    WHERE id = :device AND boot_id = :boot AND (SELECT count(*) FROM kept) >= 0
)
SELECT a.job_id, a.fence, k.id IS NOT NULL AS is_kept, coalesce(t.outcome = 'cancelled', false) AS is_cancelled,
    coalesce(t.reported AND t.boot_id = :boot, false) AS is_reported
FROM asked a LEFT JOIN kept k ON k.id = a.job_id AND k.fence = a.fence
LEFT JOIN attempt t ON t.job_id = a.job_id AND t.fence = a.fence AND t.device_id = :device
ORDER BY a.job_id
""",
    jobs="bigint[]",
    fences="int[]",
    device="text",
    boot="text",
    ttl_s="double precision",
)
# After a restart of the database nobody can have renewed for a while: everybody gets one more time to live.
_EXPIRED = text(f"""
SELECT {HELD} FROM job j WHERE state = 'leased' AND lease_expires_at < clock_timestamp()
    AND pg_postmaster_start_time() + make_interval(secs => lease_ttl_s) <= clock_timestamp()
    AND clock_timestamp() >= coalesce(CAST(:not_before AS timestamptz), '-infinity')
ORDER BY id LIMIT :limit FOR NO KEY UPDATE SKIP LOCKED
""")
_REFUSE = text("""
INSERT INTO rejected_outcome AS r (job_id, fence, device_id, boot_id, outcome_digest, outcome, why)
VALUES (:job, :fence, :device, :boot, :digest, '{}', 'a renewal by one who does not hold the lease')
ON CONFLICT (job_id, fence, device_id, boot_id, outcome_digest)
    DO UPDATE SET times = r.times + 1, received_at = clock_timestamp()
""")
_LEASE_OF_DEVICE = text("SELECT job_id, fence FROM lease_device WHERE device_id = :device")
_LOCK = text(f"""
SELECT {HELD} FROM job j WHERE id = :job AND fence = :fence AND state = 'leased' AND device_id = :device
FOR NO KEY UPDATE
""")


def database_time(c: Connection) -> datetime:
    """Now, by the clock all leases are measured with."""
    return c.execute(text("SELECT clock_timestamp()")).scalar_one()  # type: ignore[no-any-return]


def renew(c: Connection, device_id: str, boot_id: str, held: Sequence[tuple[int, int]], ttl_s: float) -> Renewal:
    """Leases (job, fence) that stand for another `ttl_s`, those whose job was cancelled, and those that are lost.

    Counts as a sign of life of the device. `held` may be empty. Those that are lost are counted, except for one that this very
    boot has just reported: the question was on its way then. Raises ValueError unless `ttl_s` is above 0.
    """
    if not 0 < ttl_s < math.inf:
        raise ValueError(f"a lease lives for a finite time above 0 s, found {ttl_s:g}")
    values = {
        "jobs": [job_id for job_id, _ in held], "fences": [fence for _, fence in held], "device": device_id,
        "boot": boot_id, "ttl_s": ttl_s,
    }  # fmt: skip
    kept: list[tuple[int, int]] = []
    to_cancel: list[tuple[int, int]] = []
    lost: list[tuple[int, int]] = []
    for row in _RENEW(c, values):
        told = kept if row["is_kept"] else to_cancel if row["is_cancelled"] else lost
        told.append((row["job_id"], row["fence"]))
        if told is lost and not row["is_reported"]:
            writer = {"job": row["job_id"], "fence": row["fence"], "device": device_id, "boot": boot_id}
            c.execute(_REFUSE, writer | {"digest": RENEWAL})
    return Renewal(tuple(kept), tuple(to_cancel), tuple(lost))


def reap(c: Connection, jitter: Callable[[], float], not_before: datetime | None = None) -> list[tuple[int, int]]:
    """Leases (job, fence) that had expired and are taken back: the job is retried or given up, its device `lost`.

    At most 500 at once. None within one time to live of the database's start, nor before `not_before`, which a reaper sets
    to its own start by `database_time` plus one time to live: while either was away nobody could renew. Also marks sweeps
    finished whose last jobs ended at the same moment.
    """
    journal = Journal()
    rows = c.execute(_EXPIRED, {"not_before": not_before, "limit": REAP_AT_ONCE}).all()
    for row in rows:
        _lapse(c, journal, row, "the lease expired without renewal", jitter(), DeviceState.LOST)
    journal.flush(c)
    settle_all(c)
    return [(row.id, row.fence) for row in rows]


def take_back(
    c: Connection, journal: Journal, device_id: str, why: str, jitter: float, becomes: DeviceState
) -> tuple[int, int] | None:
    """The lease (job, fence) this device held, now ended as a lost attempt; None when it held none.

    Locks the job before the caller locks the device, as everybody does.
    """
    lease = c.execute(_LEASE_OF_DEVICE, {"device": device_id}).first()
    if lease is None:
        return None
    row = c.execute(_LOCK, {"job": lease.job_id, "fence": lease.fence, "device": device_id}).first()
    if row is None:  # it ended while we waited for the lock
        return None
    _lapse(c, journal, row, why, jitter, becomes)
    return lease.job_id, lease.fence


def _lapse(c: Connection, journal: Journal, row: Row[Any], why: str, jitter: float, becomes: DeviceState) -> None:
    held = Held.of(row._mapping)
    device_id = held.device_id or ""
    message = f"device {device_id}: {why}"
    step = after_fault(FaultKind.LOST, message, History(held.faults, held.remeasures), jitter)
    end_lease(c, journal, held, Ending(device_id, "fault", FaultKind.LOST, message), step, (becomes, why))
    journal.event(f"device_{becomes}", None, None, device=device_id, reason=why)
