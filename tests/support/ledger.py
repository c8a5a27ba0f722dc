"""Devices, sweeps and outcomes for tests of the ledger: small, real contract values."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import Connection, Engine, text

from effillm_server.contract.fingerprint import DeviceDeclaration, Fingerprint, Gpu, Hardware, Processor, Software
from effillm_server.contract.job import Cell, Lease
from effillm_server.contract.outcome import (
    ChildRecord,
    Fault,
    FaultKind,
    Infeasible,
    InfeasibleReason,
    LoadedModel,
    Measured,
    MemoryReading,
    Phase,
    Sample,
    StopReason,
    Verdict,
)
from effillm_server.contract.sweep import SweepDefinition
from effillm_server.ledger import queue
from effillm_server.ledger.engine import connect
from effillm_server.lifecycle import DeviceState

GB = 10**9
BOOT = "boot-1"
TTL_S = 60.0


@dataclass(frozen=True)
class Plan:
    """A planned cell, as expand.PlannedCell is one."""

    ordinal: int
    cell: Cell
    digest: str
    infeasible: tuple[InfeasibleReason, str] | None = None


def definition(**changes: Any) -> SweepDefinition:
    base: dict[str, Any] = {
        "name": "test", "models": ["facebook/opt-125m"], "hardware": ["cpu"], "quantization": ["fp32"],
        "engine": ["simulated"],
    }  # fmt: skip
    return SweepDefinition.model_validate(base | changes)


def cell(**changes: Any) -> Cell:
    base: dict[str, Any] = {
        "model": "facebook/opt-125m", "weights": "synthetic", "quantization": "fp32", "dtype": "float32",
        "engine": "simulated", "runtime": "default", "hardware": "cpu", "batch_size": 1, "sequence_length": 128,
        "workload": "synthetic", "generate_tokens": 4,
    }  # fmt: skip
    return Cell.model_validate(base | changes)


def submit(c: Connection, *cells: Cell, owner: str | None = None, key: str | None = None, **changes: Any) -> str:
    """Id of a new sweep of these cells."""
    of = definition(**changes)
    sweep_id = queue.new_sweep_id()
    planned = [Plan(n, one, one.digest(of.measurement)) for n, one in enumerate(cells)]
    queue.enqueue(c, queue.NewSweep(sweep_id, of, owner, key), planned)
    return sweep_id


def hardware(hardware_class: str = "cpu", *, declared: bool = False, memory_bytes: int = 16 * GB) -> Hardware:
    processor = Processor(
        model="Test CPU", architecture="x86_64", sockets=1, physical_cores=1, logical_cores=2, numa_nodes=1
    )
    gpu = None if hardware_class == "cpu" else Gpu(name=hardware_class, uuid="GPU-1", memory_bytes=memory_bytes)
    return Hardware(
        hardware_class=hardware_class, declared=declared, processor=processor, memory_bytes=64 * GB, gpu=gpu
    )


def declaration(
    device_id: str = "box-cpu0", hardware_class: str = "cpu", *, declared: bool = False, memory_bytes: int = 16 * GB
) -> DeviceDeclaration:
    return DeviceDeclaration(
        id=device_id, hardware_class=hardware_class, node="box", memory_bytes=memory_bytes, declared=declared,
        hardware=hardware(hardware_class, declared=declared, memory_bytes=memory_bytes),
    )  # fmt: skip


def join(c: Connection, device_id: str = "box-cpu0", boot_id: str = BOOT, **changes: Any) -> str:
    """Id of a registered, attested, free device."""
    assert queue.register_device(c, declaration(device_id, **changes), boot_id) is DeviceState.QUARANTINED
    assert queue.attest(c, device_id, boot_id, None, None)
    return device_id


def request(device_id: str = "box-cpu0", boot_id: str = BOOT, **changes: Any) -> queue.LeaseRequest:
    return queue.LeaseRequest(**({"device_id": device_id, "boot_id": boot_id, "ttl_s": TTL_S} | changes))


def leased(c: Connection, device_id: str = "box-cpu0", boot_id: str = BOOT, **changes: Any) -> Lease:
    """The lease the device is granted; there must be one."""
    granted = queue.lease(c, request(device_id, boot_id, **changes))
    assert granted is not None
    return granted


def fingerprint(**changes: Any) -> Fingerprint:
    software = Software(python="3.11.9", kernel="6.1", code_version="0.1.0")
    return Fingerprint(**({"hardware": hardware(), "software": software} | changes))


def child(child_id: str = "child-1", **changes: Any) -> ChildRecord:
    base: dict[str, Any] = {
        "id": child_id, "load_group": "group", "pid": 4711, "started_at": "2026-01-01T00:00:00+00:00", "load_s": 1.5,
        "baseline": MemoryReading(ram_bytes=GB), "loaded": MemoryReading(ram_bytes=2 * GB), "cells_measured": 1,
        "loaded_model": LoadedModel(parameters=1000, weight_bytes=4000, bits_per_weight=32.0, dtype="float32"),
    }  # fmt: skip
    return ChildRecord(**(base | changes))


def samples(iterations: int = 5) -> tuple[Sample, ...]:
    """Iterations of four tokens that take 1 s each, the first token after 0.25 s, behind three warm-ups."""
    stamps = tuple(10**9 * n // 4 for n in range(5))
    warmup = tuple(Sample(iteration=n, phase=Phase.WARMUP, prompt_tokens=128, timestamps_ns=stamps) for n in range(3))
    counted = tuple(
        Sample(iteration=n, phase=phase, prompt_tokens=128, timestamps_ns=stamps[: 2 if phase is Phase.TTFT else 5])
        for phase in (Phase.MEASURED, Phase.TTFT)
        for n in range(iterations)
    )
    return warmup + counted


def measured(**changes: Any) -> Measured:
    base: dict[str, Any] = {
        "samples": samples(), "stop_reason": StopReason.MAX_ITERATIONS, "energy_source": "not readable",
        "verdict": Verdict.VALID, "fingerprint": fingerprint(), "child": child(), "simulated": True,
    }  # fmt: skip
    return Measured(**(base | changes))


def invalid() -> Measured:
    return measured(verdict=Verdict.INVALID, reasons=("processor_used_by_others",))


def out_of_memory(*, warm: bool = False, host: bool = False) -> Infeasible:
    reason = InfeasibleReason.OUT_OF_HOST_MEMORY if host else InfeasibleReason.OUT_OF_DEVICE_MEMORY
    return Infeasible(reason=reason, message="tried to allocate 20 GB", warm=warm)


def crashed(**changes: Any) -> Fault:
    return Fault(**({"fault": FaultKind.CRASHED, "message": "signal SEGV"} | changes))


@contextmanager
def ledger(url: str, role: Any = "api") -> Iterator[Engine]:
    """An engine that is disposed of at the end."""
    engine = connect(url, role)
    try:
        yield engine
    finally:
        engine.dispose()


def end_session(c: Connection, pid: int) -> None:
    """End the session of a server process and return when it is gone: a bare request for it returns before.

    Not asked of pg_stat_activity, which shows a transaction what it showed it first.
    """
    assert c.execute(text("SELECT pg_terminate_backend(:pid, 10000)"), {"pid": pid}).scalar_one()


def expire(c: Connection, job_id: int) -> None:
    """Move the lease's end, and what the database remembers of its own start, into the past."""
    c.execute(
        text(
            "UPDATE job SET lease_expires_at = clock_timestamp() - interval '1 s', lease_ttl_s = 0.001 WHERE id = :id"
        ),
        {"id": job_id},
    )


def skip_backoff(c: Connection) -> None:
    """Let every waiting retry be due now."""
    c.execute(text("UPDATE job SET not_before = NULL WHERE state = 'pending'"))


# Every moment the ledger remembers, so that it may be moved: tests wait for nothing.
_PASS = (
    "UPDATE sweep SET created_at = created_at - :by",
    "UPDATE job SET leased_at = leased_at - :by, not_before = not_before - :by, finished_at = finished_at - :by"
    " WHERE coalesce(leased_at, not_before, finished_at) IS NOT NULL",
    "UPDATE sweep_counter SET leased_since_ms = leased_since_ms - leased * :ms,"
    " recent_at_ms = CASE WHEN recent_at_ms > 0 THEN recent_at_ms - :ms ELSE 0 END",
    "UPDATE device SET load_since = load_since - :by",
)


def let_pass(c: Connection, seconds: float) -> None:
    """Move everything that has happened so far this many seconds into the past. Leases stand as they did."""
    for statement in _PASS:
        c.execute(text(statement), {"by": timedelta(seconds=seconds), "ms": round(seconds * 1000)})
