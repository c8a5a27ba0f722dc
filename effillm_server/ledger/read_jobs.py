"""Jobs, their attempts, and how far each configuration runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, text

from effillm_server.ledger.rows import cell_columns, cell_of
from effillm_server.lifecycle import JobState
from effillm_server.records import AttemptRecord, FrontierRecord, JobRecord

# The device is the one that holds the job, or whose result counts, or that tried last.
JOB_COLUMNS = f"""
    j.id, j.sweep_id, j.ordinal, j.digest, j.state, j.reason, j.message, j.implied_by, j.faults, j.remeasures, j.fence,
    j.result_fence, j.not_before, j.finished_at, s.created_at, m.verdict, {cell_columns("j")},
    coalesce(j.device_id, m.device_id, a.device_id) AS device_id
"""
_JOINED = """
    JOIN sweep s ON s.id = j.sweep_id
    LEFT JOIN measurement m ON m.job_id = j.id AND m.fence = j.result_fence
    LEFT JOIN attempt a ON a.job_id = j.id AND a.fence = j.fence
"""
JOB_TABLES = f"job j {_JOINED}"
_ONE = text(f"SELECT {JOB_COLUMNS} FROM {JOB_TABLES} WHERE j.id = :id")
# The page first, then what belongs to it: of a sweep stored a moment ago the planner knows nothing yet, and would join all of it.
_PAGE = f"""
WITH page AS MATERIALIZED (
    SELECT * FROM job WHERE sweep_id = :sweep AND ordinal > :after {{state}} ORDER BY ordinal LIMIT :limit
)
SELECT {JOB_COLUMNS} FROM page j {_JOINED} ORDER BY j.ordinal
"""
_ALL = text(_PAGE.format(state=""))
_IN_STATE = text(_PAGE.format(state="AND state = :state"))
_ATTEMPTS = text("SELECT * FROM attempt WHERE job_id = :job ORDER BY fence")
_FRONTIER = text("""
SELECT model, weights, quantization, dtype, engine, runtime, hardware, workload, generate_tokens, sequence_length,
    max(batch_size) FILTER (WHERE state = 'measured') AS largest_batch_size,
    min(batch_size) FILTER (WHERE state = 'infeasible') AS smallest_infeasible_batch_size,
    (array_agg(reason ORDER BY batch_size) FILTER (WHERE state = 'infeasible'))[1] AS reason
FROM job WHERE sweep_id = :sweep AND state IN ('measured', 'infeasible')
GROUP BY model, weights, quantization, dtype, engine, runtime, hardware, workload, generate_tokens, sequence_length
ORDER BY min(ordinal)
""")


def jobs(
    c: Connection, sweep_id: str, after_ordinal: int | None, limit: int, state: JobState | None = None
) -> list[JobRecord]:
    """A page of the sweep's jobs by ordinal, behind `after_ordinal` (None: from the first)."""
    after = -1 if after_ordinal is None else after_ordinal
    values = {"sweep": sweep_id, "after": after, "limit": limit, "state": state}
    found = c.execute(_ALL if state is None else _IN_STATE, values)
    names = tuple(found.keys())
    # A page is a hundred rows of thirty columns: as dicts of their own they cost half of what SQLAlchemy's make of them.
    return [job_record(dict(zip(names, row, strict=True))) for row in found]


def job(c: Connection, job_id: int) -> JobRecord | None:
    """The job, None if there is none."""
    row = c.execute(_ONE, {"id": job_id}).first()
    return None if row is None else job_record(row._asdict())


def attempts(c: Connection, job_id: int) -> list[AttemptRecord]:
    """Every lease of the job and how it ended, in order."""
    return [
        AttemptRecord(
            job_id=row.job_id, fence=row.fence, device_id=row.device_id, node=row.node, boot_id=row.boot_id,
            started_at=row.started_at, ended_at=row.ended_at, outcome=row.outcome, reason=row.reason,
            message=row.message, exit_code=row.exit_code, signal=row.signal, log_tail=tuple(row.log_tail),
            code_version=row.code_version,
        )
        for row in c.execute(_ATTEMPTS, {"job": job_id})
    ]  # fmt: skip


def frontier(c: Connection, sweep_id: str) -> list[FrontierRecord]:
    """One record per configuration and sequence length of which anything was measured or found infeasible."""
    return [FrontierRecord(**row._asdict()) for row in c.execute(_FRONTIER, {"sweep": sweep_id})]


def job_record(row: Mapping[str, Any]) -> JobRecord:
    """The record of a row selected with JOB_COLUMNS."""
    return JobRecord(
        id=row["id"], sweep_id=row["sweep_id"], ordinal=row["ordinal"], cell=cell_of(row), digest=row["digest"],
        state=JobState(row["state"]), reason=row["reason"], message=row["message"], implied_by=row["implied_by"],
        faults=row["faults"], remeasures=row["remeasures"], fence=row["fence"], result_fence=row["result_fence"],
        device_id=row["device_id"], not_before=row["not_before"], created_at=row["created_at"],
        finished_at=row["finished_at"], verdict=row["verdict"],
    )  # fmt: skip
