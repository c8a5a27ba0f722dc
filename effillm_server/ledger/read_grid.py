"""Jobs as a page draws them: many at once, with the headline numbers only, no samples and no record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from sqlalchemy import Connection, text

from effillm_server.lifecycle import JobState

# VRAM where the device has its own memory, else RAM: the stage "inference" of the paper.
_MEMORY = "coalesce(m.peak_vram_bytes, m.peak_ram_bytes)"
_GRID = text(f"""
SELECT j.id, j.ordinal, j.model, j.weights, j.revision, j.quantization, j.batch_size, j.sequence_length, j.state, j.reason,
    j.implied_by, m.verdict, m.throughput_tok_s, m.ttft_s, m.e2e_s, {_MEMORY} AS memory_bytes, m.energy_j,
    coalesce(m.simulated, false) AS simulated
FROM job j LEFT JOIN measurement m ON m.job_id = j.id AND m.fence = j.result_fence
WHERE j.sweep_id = :sweep AND j.hardware = :hardware AND j.engine = :engine AND j.runtime = :runtime
    AND j.workload = :workload AND j.generate_tokens = :generate_tokens AND j.repeat = :repeat
    AND j.model = ANY(:models) AND j.batch_size = ANY(:batch_sizes)
    AND (j.sequence_length IS NULL OR j.sequence_length = ANY(:sequence_lengths))
ORDER BY j.ordinal
""")
_EXTREMES = text(f"""
SELECT count(*) AS jobs, min(m.throughput_tok_s) AS throughput_low, max(m.throughput_tok_s) AS throughput_high,
    min(m.ttft_s) AS ttft_low, max(m.ttft_s) AS ttft_high, min({_MEMORY}) AS memory_low, max({_MEMORY}) AS memory_high
FROM job j JOIN measurement m ON m.job_id = j.id AND m.fence = j.result_fence WHERE j.sweep_id = :sweep
""")
_SERVED = text("""
SELECT hardware, sum(served_ms) / 1000.0 / sum(jobs) AS seconds, sum(jobs) AS jobs FROM (
    SELECT hardware, served_ms, measured + failed + out_of_device_memory + out_of_host_memory + time_limit AS jobs
    FROM sweep_counter
) k GROUP BY hardware HAVING sum(jobs) > 0 AND sum(served_ms) > 0
""")


@dataclass(frozen=True)
class GridSlice:
    """A rectangle of a sweep's matrix: one value of the axes a grid does not show, some of those it does."""

    hardware: str
    engine: str
    runtime: str
    workload: str
    generate_tokens: int
    repeat: int
    models: Sequence[str]
    batch_sizes: Sequence[int]
    sequence_lengths: Sequence[int]


@dataclass(frozen=True)
class GridCell:
    """A job in its place, its state, and what was measured; numbers are None where nothing was."""

    id: int
    ordinal: int
    model: str
    weights: str
    revision: str | None
    quantization: str
    batch_size: int
    sequence_length: int | None
    state: JobState
    reason: str | None
    implied_by: int | None
    verdict: str | None
    throughput_tok_s: float | None
    ttft_s: float | None
    e2e_s: float | None
    memory_bytes: int | None
    energy_j: float | None
    simulated: bool


@dataclass(frozen=True)
class Extremes:
    """The least and the most that a sweep has measured; None where it has measured nothing."""

    jobs: int
    throughput_low: float | None
    throughput_high: float | None
    ttft_low: float | None
    ttft_high: float | None
    memory_low: int | None
    memory_high: int | None


@dataclass(frozen=True)
class Served:
    """Device seconds that a job took on average, and how many jobs that stands on."""

    seconds: float
    jobs: int


def grid(c: Connection, sweep_id: str, of: GridSlice) -> list[GridCell]:
    """The jobs of the sweep in this rectangle, in the sweep's order."""
    values = asdict(of) | {"sweep": sweep_id}
    listed = {name: list(values[name]) for name in ("models", "batch_sizes", "sequence_lengths")}
    rows = (row._asdict() for row in c.execute(_GRID, values | listed))
    return [GridCell(**row | {"state": JobState(row["state"])}) for row in rows]


def extremes(c: Connection, sweep_id: str) -> Extremes:
    """The range of the sweep's headline numbers, over the results that count."""
    return Extremes(**c.execute(_EXTREMES, {"sweep": sweep_id}).one()._asdict())


def served(c: Connection) -> dict[str, Served]:
    """What a job took so far by hardware class, over everything in the ledger; classes that ran nothing are missing."""
    return {row.hardware: Served(float(row.seconds), int(row.jobs)) for row in c.execute(_SERVED)}
