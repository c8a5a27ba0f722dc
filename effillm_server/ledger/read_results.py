"""Results raw: the measurement that counts, its samples, its child. Statistics are somebody else's."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, text

from effillm_server.ledger.read_jobs import JOB_COLUMNS, JOB_TABLES, job_record
from effillm_server.records import JobRecord, ResultRecord

_CHILD = (
    "id", "load_group", "pid", "started_at", "load_s", "baseline", "loaded", "released", "cells_measured", "loaded_model",
)  # fmt: skip
_SELECT = f"""
SELECT {JOB_COLUMNS}, m.fence AS measured_fence, m.device_id AS measured_device, m.fingerprint_digest,
    m.record AS measurement, {", ".join(f"k.{name} AS child_{name}" for name in _CHILD)}
FROM {JOB_TABLES} LEFT JOIN child k ON k.id = m.child_id
"""
_PAGE = text(_SELECT + "WHERE j.sweep_id = :sweep AND j.ordinal > :after ORDER BY j.ordinal LIMIT :limit")
_ONE = text(_SELECT + "WHERE j.id = :job AND m.job_id IS NOT NULL")
# The axes by which an analysis tells cells apart, but those that only say how the weights are stored.
_SAME_BUT_STORED = ("model", "weights", "engine", "runtime", "hardware", "batch_size", "workload", "generate_tokens")
_BESIDE = text(
    _SELECT
    + "WHERE j.sweep_id = :sweep AND m.job_id IS NOT NULL AND j.quantization = ANY(:quantizations) "
    + "AND j.sequence_length IS NOT DISTINCT FROM CAST(:sequence_length AS int) "
    + "".join(f"AND j.{name} = :{name} " for name in _SAME_BUT_STORED)
    + "ORDER BY j.ordinal LIMIT :limit"
)
_SAMPLES = text("""
SELECT s.job_id, s.iteration, s.phase, s.prompt_tokens, s.timestamps_ns, s.outlier
FROM unnest(CAST(:jobs AS bigint[]), CAST(:fences AS int[])) AS w (job_id, fence)
JOIN sample s ON s.job_id = w.job_id AND s.fence = w.fence
ORDER BY s.job_id, s.position
""")
_FINGERPRINTS = text("SELECT digest, record FROM fingerprint WHERE digest = ANY(:digests)")

_Samples = dict[int, list[dict[str, Any]]]


def results(
    c: Connection, sweep_id: str, after_ordinal: int | None, limit: int, with_samples: bool
) -> list[ResultRecord]:
    """A page of the sweep's jobs by ordinal, all of them; `measurement` is None where nothing has been measured."""
    after = -1 if after_ordinal is None else after_ordinal
    rows = [row._asdict() for row in c.execute(_PAGE, {"sweep": sweep_id, "after": after, "limit": limit})]
    return _records(c, rows, with_samples=with_samples)


def result(c: Connection, job_id: int) -> ResultRecord | None:
    """The measurement that counts for the job, with samples; None when there is none."""
    rows = [row._asdict() for row in c.execute(_ONE, {"job": job_id})]
    return next(iter(_records(c, rows, with_samples=True)), None)


def beside(c: Connection, job: JobRecord, quantizations: Sequence[str], limit: int = 200) -> list[ResultRecord]:
    """What was measured in the job's sweep of its cell and of the same cell in these quantizations, repeats included."""
    axes = job.cell.model_dump(mode="json", include={*_SAME_BUT_STORED, "sequence_length"})
    wanted = sorted({job.cell.quantization, *quantizations})
    values = axes | {"sweep": job.sweep_id, "quantizations": wanted, "limit": limit}
    return _records(c, [row._asdict() for row in c.execute(_BESIDE, values)], with_samples=True)


def _records(c: Connection, rows: list[dict[str, Any]], *, with_samples: bool) -> list[ResultRecord]:
    measured = [row for row in rows if row["measurement"] is not None]
    samples = _samples(c, measured) if with_samples and measured else {}
    digests = sorted({row["fingerprint_digest"] for row in measured})
    fingerprints = {row.digest: row.record for row in c.execute(_FINGERPRINTS, {"digests": digests})}
    return [_record(row, samples, fingerprints) for row in rows]


def _samples(c: Connection, rows: list[dict[str, Any]]) -> _Samples:
    wanted = {"jobs": [row["id"] for row in rows], "fences": [row["measured_fence"] for row in rows]}
    found: _Samples = defaultdict(list)
    for row in c.execute(_SAMPLES, wanted):
        sample = row._asdict()
        found[sample.pop("job_id")].append(sample)
    return found


def _record(row: Mapping[str, Any], samples: _Samples, fingerprints: Mapping[str, Any]) -> ResultRecord:
    if row["measurement"] is None:
        return ResultRecord(job=job_record(row))
    child = {name: row[f"child_{name}"] for name in _CHILD}
    parts = {"child": child, "fingerprint": fingerprints[row["fingerprint_digest"]]}
    return ResultRecord(
        job=job_record(row), device_id=row["measured_device"], fence=row["measured_fence"],
        fingerprint_digest=row["fingerprint_digest"], measurement=row["measurement"] | parts,
        samples=tuple(samples.get(row["id"], ())), child=child,
    )  # fmt: skip
