"""Out of memory once confirmed answers every larger cell on devices with no more memory."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, text

from effillm_server.contract.outcome import InfeasibleReason
from effillm_server.ledger.journal import Journal
from effillm_server.ledger.rows import cell_columns, cell_of
from effillm_server.lifecycle import JobState

_ORIGIN = text(f"""
SELECT {cell_columns("j")}, d.memory_bytes, d.host_memory_bytes, d.has_gpu,
    coalesce((s.definition->'measurement'->>'repeats')::int, 1) AS repeats
FROM job j JOIN sweep s ON s.id = j.sweep_id JOIN device d ON d.id = :device WHERE j.id = :job
""")
# Lost devices count: they may come back with their memory.
_CLASSES = """
SELECT hardware_class FROM device WHERE has_gpu = :has_gpu
GROUP BY hardware_class HAVING max({memory}) <= :memory
"""
# Rows that somebody is leasing right now are skipped: they find out by themselves.
_IMPLY = text("""
WITH larger AS MATERIALIZED (
    SELECT id FROM job
    WHERE sweep_id = :sweep AND state = 'pending' AND hardware = ANY(:classes) AND load_group = ANY(:groups)
        AND workload = :workload AND batch_size >= :batch_size AND generate_tokens >= :generate_tokens
        AND (sequence_length >= :sequence_length OR (sequence_length IS NULL AND :sequence_length IS NULL))
    ORDER BY id FOR NO KEY UPDATE SKIP LOCKED
), implied AS (
    UPDATE job SET state = 'infeasible', reason = 'implied', message = :message, implied_by = :job, not_before = NULL,
        fresh_child = false, avoid_device = NULL, finished_at = clock_timestamp()
    FROM larger WHERE job.id = larger.id AND job.state = 'pending'
    RETURNING job.hardware
)
SELECT hardware, count(*) AS jobs FROM implied GROUP BY hardware
""")
_MEMORY_OF = {
    InfeasibleReason.OUT_OF_DEVICE_MEMORY: ("memory_bytes", "device memory"),
    InfeasibleReason.OUT_OF_HOST_MEMORY: ("host_memory_bytes", "host memory"),
}


def imply(c: Connection, journal: Journal, sweep_id: str, job_id: int, device_id: str, reason: InfeasibleReason) -> int:
    """Number of pending cells answered because `job_id` ran out of memory on `device_id`.

    Same sweep, model, weights, precision, engine and runtime; batch, sequence and generated tokens all at least as
    large; classes of the same kind of device, all of whose known devices have at most as much of that memory.
    """
    column, noun = _MEMORY_OF[reason]
    origin = c.execute(_ORIGIN, {"job": job_id, "device": device_id}).mappings().one()
    cell = cell_of(origin)
    limits = {"has_gpu": origin["has_gpu"], "memory": origin[column]}
    classes = list(c.execute(text(_CLASSES.format(memory=column)), limits).scalars())
    if not classes:
        return 0
    groups = [
        cell.model_copy(update={"hardware": hardware, "repeat": repeat}).load_group(sweep_id)
        for hardware in classes
        for repeat in range(1, origin["repeats"] + 1)
    ]
    values: dict[str, Any] = {
        "sweep": sweep_id, "job": job_id, "classes": classes, "groups": groups, "workload": cell.workload,
        "batch_size": cell.batch_size, "generate_tokens": cell.generate_tokens, "sequence_length": cell.sequence_length,
        "message": f"needs at least as much memory as job {job_id}, which ran out of {noun} on {device_id}",
    }  # fmt: skip
    total = 0
    for hardware, jobs in c.execute(_IMPLY, values):
        journal.move(sweep_id, hardware, JobState.PENDING, JobState.INFEASIBLE, InfeasibleReason.IMPLIED, jobs)
        total += jobs
    if total:
        journal.event("jobs_implied", sweep_id, job_id, jobs=total)
    return total
