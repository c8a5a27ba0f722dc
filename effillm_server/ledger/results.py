"""What an attempt brought back: child, fingerprint, measurement and samples. Written once, never edited."""

from __future__ import annotations

import json
from statistics import fmean
from typing import Any

from sqlalchemy import Connection, text

from effillm_server.contract import timeline
from effillm_server.contract.fingerprint import Fingerprint
from effillm_server.contract.outcome import ChildRecord, Measured, Phase, Sample
from effillm_server.ledger.copying import copy_rows

SAMPLE_COLUMNS = ("job_id", "fence", "position", "iteration", "phase", "prompt_tokens", "timestamps_ns", "outlier")

# The same child is reported with each of its cells and once more at its end: what is known is never unlearned.
_CHILD = """
INSERT INTO child AS k (id, device_id, boot_id, load_group, pid, started_at, load_s, baseline, loaded, released,
                        cells_measured, loaded_model)
VALUES (:child_id, :device_id, :boot_id, :load_group, :pid, :started_at, :load_s, CAST(:baseline AS jsonb),
        CAST(:loaded AS jsonb), CAST(:released AS jsonb), :cells_measured, CAST(:loaded_model AS jsonb))
ON CONFLICT (id) DO UPDATE SET
    load_s = coalesce(excluded.load_s, k.load_s), baseline = coalesce(excluded.baseline, k.baseline),
    loaded = coalesce(excluded.loaded, k.loaded), released = coalesce(excluded.released, k.released),
    cells_measured = greatest(excluded.cells_measured, k.cells_measured),
    loaded_model = coalesce(excluded.loaded_model, k.loaded_model), recorded_at = clock_timestamp()
WHERE k.device_id = excluded.device_id
"""
_STORE_CHILD = text(_CHILD)
_STORE_FINGERPRINT = text("""
INSERT INTO fingerprint (digest, record) VALUES (:digest, CAST(:record AS jsonb)) ON CONFLICT (digest) DO NOTHING
""")
_STORE_MEASUREMENT = text(f"""
WITH child_stored AS ({_CHILD}),
known AS (
    INSERT INTO fingerprint (digest, record) VALUES (:digest, CAST(:fingerprint AS jsonb))
    ON CONFLICT (digest) DO NOTHING
)
INSERT INTO measurement (job_id, fence, device_id, declared, simulated, child_id, fingerprint_digest, verdict, reasons,
    stop_reason, iterations, warmup_iterations, throughput_tok_s, ttft_s, e2e_s, peak_ram_bytes, peak_vram_bytes,
    energy_j, record)
VALUES (:job_id, :fence, :device_id, :declared, :simulated, :child_id, :digest, :verdict, CAST(:reasons AS text[]),
    :stop_reason, :iterations, :warmup_iterations, :throughput_tok_s, :ttft_s, :e2e_s, :peak_ram_bytes, :peak_vram_bytes,
    :energy_j, CAST(:record AS jsonb))
""")


def store_child(c: Connection, device_id: str, boot_id: str, child: ChildRecord) -> bool:
    """Whether the child's record was stored; it is not when another device has a child of this id."""
    return c.execute(_STORE_CHILD, _child_values(device_id, boot_id, child)).rowcount == 1


def store_fingerprint(c: Connection, fingerprint: Fingerprint) -> str:
    """Digest under which the fingerprint is known."""
    values = {"digest": fingerprint.digest, "record": fingerprint.model_dump_json()}
    c.execute(_STORE_FINGERPRINT, values)
    return fingerprint.digest


def store_measurement(
    c: Connection, device: tuple[str, str, bool], job: tuple[int, int, int], measured: Measured
) -> None:
    """Store a measurement with its child, fingerprint and samples.

    `device` is its id, the actor's boot id and whether it is only declared; `job` is id, fence and batch size.
    """
    device_id, boot_id, declared = device
    job_id, fence, batch_size = job
    peak = measured.memory.peak
    values = _child_values(device_id, boot_id, measured.child) | _headline(measured.samples, batch_size)
    values |= {
        "job_id": job_id, "fence": fence, "declared": declared, "simulated": measured.simulated,
        "digest": measured.fingerprint.digest, "fingerprint": measured.fingerprint.model_dump_json(),
        "verdict": measured.verdict, "reasons": list(measured.reasons), "stop_reason": measured.stop_reason,
        "peak_ram_bytes": peak and (peak.ram_peak_bytes or peak.ram_bytes), "peak_vram_bytes": peak and peak.vram_bytes,
        "energy_j": measured.energy_j,
        # Child and fingerprint have rows of their own, shared by many measurements.
        "record": measured.model_dump_json(exclude={"samples", "child", "fingerprint"}),
    }  # fmt: skip
    c.execute(_STORE_MEASUREMENT, values)
    copy_rows(
        c, "sample", SAMPLE_COLUMNS,
        (
            (job_id, fence, position, s.iteration, s.phase, s.prompt_tokens, s.timestamps_ns, s.outlier)
            for position, s in enumerate(measured.samples)
        ),
    )  # fmt: skip


def _child_values(device_id: str, boot_id: str, child: ChildRecord) -> dict[str, Any]:
    record = child.model_dump(mode="json")
    stages = {
        name: None if record[name] is None else json.dumps(record[name])
        for name in ("baseline", "loaded", "released", "loaded_model")
    }
    return {
        "child_id": child.id, "device_id": device_id, "boot_id": boot_id, "load_group": child.load_group,
        "pid": child.pid, "started_at": child.started_at, "load_s": child.load_s,
        "cells_measured": child.cells_measured, **stages,
    }  # fmt: skip


def _headline(samples: tuple[Sample, ...], batch_size: int) -> dict[str, Any]:
    """Means for lists and sorting; every figure that is shown or analysed is computed from the samples instead."""
    counted = [s.timestamps_ns for s in samples if s.phase is Phase.MEASURED and not s.outlier]
    first = [s.timestamps_ns for s in samples if s.phase is Phase.TTFT and not s.outlier]
    return {
        "iterations": len(counted),
        "warmup_iterations": sum(s.phase is Phase.WARMUP for s in samples),
        "throughput_tok_s": fmean(timeline.throughput_tok_s(t, batch_size) for t in counted) if counted else None,
        "ttft_s": fmean(map(timeline.ttft_s, first)) if first else None,
        "e2e_s": fmean(map(timeline.e2e_s, counted)) if counted else None,
    }
