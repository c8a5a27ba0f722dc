"""Devices as the lab sees them."""

from __future__ import annotations

from sqlalchemy import Connection, Row, text

from effillm_server.lifecycle import DeviceState
from effillm_server.records import DeviceRecord

_DEVICES = """
SELECT d.*, l.job_id, l.fence FROM device d LEFT JOIN lease_device l ON l.device_id = d.id
"""
_ALL = text(_DEVICES + "ORDER BY d.hardware_class, d.id")
_ONE = text(_DEVICES + "WHERE d.id = :id")


def devices(c: Connection) -> list[DeviceRecord]:
    """Every device that ever registered, by class and id."""
    return [_record(row) for row in c.execute(_ALL)]


def device(c: Connection, device_id: str) -> DeviceRecord | None:
    """The device, None if there is none."""
    row = c.execute(_ONE, {"id": device_id}).first()
    return None if row is None else _record(row)


def known_hardware(c: Connection) -> set[str]:
    """Classes of which a device has registered."""
    return set(c.execute(text("SELECT DISTINCT hardware_class FROM device")).scalars())


def _record(row: Row[tuple[object, ...]]) -> DeviceRecord:
    values = row._mapping
    state = DeviceState(values["state"])
    reason = values["reason"]
    if values["draining"] and state is not DeviceState.LOST:
        reason = reason or ("drained" if state is DeviceState.DRAINING else "draining: takes no further job")
    details = {
        "draining": values["draining"], "fence": values["fence"], "declaration": values["declaration"],
        "host_memory_bytes": values["host_memory_bytes"], "state_since": values["state_since"].isoformat(),
        "load_since": None if values["load_since"] is None else values["load_since"].isoformat(),
    }  # fmt: skip
    return DeviceRecord(
        id=values["id"], hardware_class=values["hardware_class"], node=values["node"],
        memory_bytes=values["memory_bytes"], declared=values["declared"], state=state, reason=reason,
        boot_id=values["boot_id"], last_seen=values["last_seen"], fingerprint_digest=values["fingerprint_digest"],
        job_id=values["job_id"], load_group=values["load_group"] if state is DeviceState.LEASED else None,
        ceiling=values["ceiling"], details=details,
    )  # fmt: skip
