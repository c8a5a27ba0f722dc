"""Why a job is where it is, in words."""

from __future__ import annotations

from sqlalchemy import Connection, text

from effillm_server.contract.outcome import FaultKind
from effillm_server.contract.sweep import Engine
from effillm_server.contract.units import format_seconds
from effillm_server.errors import NotFound
from effillm_server.ledger.leases import database_time
from effillm_server.ledger.read_devices import devices
from effillm_server.ledger.read_jobs import job
from effillm_server.lifecycle import MAX_ATTEMPTS, DeviceState, JobState
from effillm_server.records import DeviceRecord, JobRecord

_SETTLED = {
    JobState.MEASURED: "measured",
    JobState.INFEASIBLE: "cannot run",
    JobState.FAILED: "failed",
    JobState.CANCELLED: "cancelled",
}
_FAULTS = frozenset(FaultKind)


def explain(c: Connection, job_id: int) -> str:
    """One or two sentences about the job's state and what it waits for. Raises NotFound."""
    found = job(c, job_id)
    if found is None:
        raise NotFound(f"there is no job {job_id}: GET /v1/sweeps/{{id}}/jobs lists a sweep's jobs")
    if found.state is JobState.PENDING:
        return _pending(c, found)
    if found.state is JobState.LEASED:
        return f"being measured on {found.device_id}, attempt {found.faults + 1} of {MAX_ATTEMPTS}"
    return _ended(found)


def _ended(found: JobRecord) -> str:
    words = _SETTLED[found.state]
    if found.state is JobState.MEASURED:
        return f"{words} on {found.device_id}, verdict {found.verdict}"
    reason = f" ({found.reason})" if found.reason else ""
    return f"{words}{reason}: {found.message}" if found.message else f"{words}{reason}"


def _pending(c: Connection, found: JobRecord) -> str:
    before = f"{found.message} ({found.reason}). " if found.message else ""
    if found.reason in _FAULTS:
        before = f"attempt {found.faults} of {MAX_ATTEMPTS}: {before}"
    remaining_s = 0.0 if found.not_before is None else (found.not_before - database_time(c)).total_seconds()
    if remaining_s > 0:
        return f"{before}Tried again in {format_seconds(remaining_s)}"
    there = [device for device in devices(c) if device.hardware_class == found.cell.hardware]
    return before + _waits_for(c, found, there)


def _waits_for(c: Connection, found: JobRecord, there: list[DeviceRecord]) -> str:
    name = found.cell.hardware
    if not there:
        return f"no device of class {name}"
    able = [device for device in there if found.cell.engine is Engine.SIMULATED or not device.declared]
    if not able:
        return f"no detected device of class {name}: a declared one takes only cells of the engine simulated"
    usable = [d for d in able if d.state in (DeviceState.FREE, DeviceState.LEASED, DeviceState.RELEASING)]
    if not usable:
        reasons = "; ".join(f"{d.id} is {d.state}" + (f": {d.reason}" if d.reason else "") for d in able)
        return f"no device of class {name} is usable: {reasons}"
    if any(device.state is DeviceState.FREE for device in usable):
        return f"next: a device of class {name} is free"
    ahead = c.execute(
        text(
            "SELECT count(*) FROM sweep WHERE finished_at IS NULL AND priority > (SELECT priority FROM sweep WHERE id = :id)"
        ),
        {"id": found.sweep_id},
    ).scalar_one()
    behind = f", behind {ahead} sweep{'s' if ahead > 1 else ''} of higher priority" if ahead else ""
    return f"waits for a device of class {name}: {len(usable)} of {len(usable)} busy{behind}"
