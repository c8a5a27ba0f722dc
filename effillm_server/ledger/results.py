"""What an attempt brought back: child, fingerprint, measurement and samples. Written once, never edited."""

from __future__ import annotations

import json
from statistics import fmean
from typing import Any

from sqlalchemy import Connection, text

from effillm_server.contract import timeline
from effillm_server.contract.fingerprint import Fingerprint
from effillm_server.contract.outcome import ChildRecord, Measured, Phase, Sample
from effillm_server.ledger.prepared import Statement

# The same child is reported with each of its cells and once more at its end: what is known is never unlearned.
_CHILD = """
INSERT INTO child AS k (id, device_id, boot_id, load_group, pid, started_at, load_s, baseline, loaded, released,
                        cells_measured, loaded_model)
VALUES (:child_id, :device_id, :boot_id, :load_group, :pid, :started_at, :load_s, :baseline, :loaded, :released,
        :cells_measured, :loaded_model)
ON CONFLICT (id) DO UPDATE SET
    load_s = coalesce(excluded.load_s, k.load_s), baseline = coalesce(excluded.baseline, k.baseline),
    loaded = coalesce(excluded.loaded, k.loaded), released = coalesce(excluded.released, k.released),
    cells_measured = greatest(excluded.cells_measured, k.cells_measured),
    loaded_model = coalesce(excluded.loaded_model, k.loaded_model), recorded_at = clock_timestamp()
WHERE k.device_id = excluded.device_id
"""
CHILD_TYPES = {
    "child_id": "text", "device_id": "text", "boot_id": "text", "load_group": "text", "pid": "bigint",
    "started_at": "text", "load_s": "double precision", "baseline": "jsonb", "loaded": "jsonb", "released": "jsonb",
    "cells_measured": "int", "loaded_model": "jsonb",
}  # fmt: skip
_STORE_CHILD = Statement("store_child", _CHILD, **CHILD_TYPES)
_STORE_FINGERPRINT = text("""
INSERT INTO fingerprint (digest, record) VALUES (:digest, CAST(:record AS jsonb)) ON CONFLICT (digest) DO NOTHING
""")
# Parts of the statement that ends a lease: the foreign keys hold at its end.
MEASUREMENT = f"""
child_stored AS ({_CHILD}),
known AS (
    INSERT INTO fingerprint (digest, record) VALUES (:fingerprint_digest, :fingerprint) ON CONFLICT (digest) DO NOTHING
), measured AS (
    INSERT INTO measurement (job_id, fence, device_id, declared, simulated, child_id, fingerprint_digest, verdict,
        reasons, stop_reason, iterations, warmup_iterations, throughput_tok_s, ttft_s, e2e_s, peak_ram_bytes,
        peak_vram_bytes, energy_j, record)
    VALUES (:job, :fence, :device_id, :declared, :simulated, :child_id, :fingerprint_digest, :verdict, :reasons,
        :stop_reason, :iterations, :warmup_iterations, :throughput_tok_s, :ttft_s, :e2e_s, :peak_ram_bytes,
        :peak_vram_bytes, :energy_j, :record)
), sampled AS (
    INSERT INTO sample (job_id, fence, position, iteration, phase, prompt_tokens, timestamps_ns, outlier)
    SELECT :job, :fence, place - 1, iteration, phase, prompt_tokens, stamps::bigint[], outlier
    FROM unnest(:sample_iterations, :sample_phases, :sample_prompt_tokens, :sample_stamps, :sample_outliers)
        WITH ORDINALITY AS s (iteration, phase, prompt_tokens, stamps, outlier, place)
)
"""
MEASUREMENT_TYPES = CHILD_TYPES | {
    "fingerprint_digest": "text", "fingerprint": "jsonb", "declared": "boolean", "simulated": "boolean",
    "verdict": "text", "reasons": "text[]", "stop_reason": "text", "iterations": "int", "warmup_iterations": "int",
    "throughput_tok_s": "double precision", "ttft_s": "double precision", "e2e_s": "double precision",
    "peak_ram_bytes": "bigint", "peak_vram_bytes": "bigint", "energy_j": "double precision", "record": "jsonb",
    "sample_iterations": "int[]", "sample_phases": "text[]", "sample_prompt_tokens": "int[]", "sample_stamps": "text[]",
    "sample_outliers": "boolean[]",
}  # fmt: skip


def store_child(c: Connection, device_id: str, boot_id: str, child: ChildRecord) -> bool:
    """Whether the child's record was stored; it is not when another device has a child of this id."""
    return _STORE_CHILD.count(c, _child_values(device_id, boot_id, child)) == 1


def store_fingerprint(c: Connection, fingerprint: Fingerprint) -> str:
    """Digest under which the fingerprint is known."""
    values = {"digest": fingerprint.digest, "record": fingerprint.model_dump_json()}
    c.execute(_STORE_FINGERPRINT, values)
    return fingerprint.digest


def measurement_values(
    device_id: str, boot_id: str, batch_size: int, measured: Measured, *, declared: bool
) -> dict[str, Any]:
    """Parameters of MEASUREMENT except job and fence. `declared`: the device is claimed for tests, not detected."""
    peak = measured.memory.peak
    return _child_values(device_id, boot_id, measured.child) | _headline(measured.samples, batch_size) | {
        "declared": declared, "simulated": measured.simulated, "fingerprint_digest": measured.fingerprint.digest,
        "fingerprint": measured.fingerprint.model_dump_json(), "verdict": measured.verdict,
        "reasons": list(measured.reasons), "stop_reason": measured.stop_reason,
        "peak_ram_bytes": peak and (peak.ram_peak_bytes or peak.ram_bytes), "peak_vram_bytes": peak and peak.vram_bytes,
        "energy_j": measured.energy_j,
        # Child and fingerprint have rows of their own, shared by many measurements.
        "record": measured.model_dump_json(exclude={"samples", "child", "fingerprint"}),
        "sample_iterations": [s.iteration for s in measured.samples],
        "sample_phases": [s.phase for s in measured.samples],
        "sample_prompt_tokens": [s.prompt_tokens for s in measured.samples],
        # An array of arrays must be rectangular, and timelines differ in length: each goes as its own text.
        "sample_stamps": ["{" + ",".join(map(str, s.timestamps_ns)) + "}" for s in measured.samples],
        "sample_outliers": [s.outlier for s in measured.samples],
    }  # fmt: skip


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
