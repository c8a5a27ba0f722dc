"""States of a device. It is free only because its own actor attested it, never because no job is leased to it."""

from __future__ import annotations

import json
import random
from typing import Any

from sqlalchemy import Connection, text

from effillm_server.contract.fingerprint import DeviceDeclaration, Fingerprint
from effillm_server.contract.outcome import ChildRecord
from effillm_server.errors import NotFound
from effillm_server.ledger.journal import Journal
from effillm_server.ledger.leases import take_back
from effillm_server.ledger.prepared import Statement
from effillm_server.ledger.results import store_child, store_fingerprint
from effillm_server.lifecycle import DeviceState

NOT_ATTESTED = "not attested yet"

_BOOT = text("SELECT boot_id FROM device WHERE id = :device")
# The same boot announces itself again: only what it declares is refreshed.
_REGISTER = text(f"""
INSERT INTO device AS d (id, hardware_class, node, memory_bytes, host_memory_bytes, declared, has_gpu, declaration, state,
    reason, boot_id, last_seen)
VALUES (:device, :hardware_class, :node, :memory_bytes, :host_memory_bytes, :declared, :has_gpu,
    CAST(:declaration AS jsonb), 'quarantined', '{NOT_ATTESTED}', :boot, clock_timestamp())
ON CONFLICT (id) DO UPDATE SET hardware_class = excluded.hardware_class, node = excluded.node,
    memory_bytes = excluded.memory_bytes, host_memory_bytes = excluded.host_memory_bytes, declared = excluded.declared,
    has_gpu = excluded.has_gpu, declaration = excluded.declaration, last_seen = excluded.last_seen,
    boot_id = excluded.boot_id,
    state = CASE WHEN d.boot_id = excluded.boot_id THEN d.state ELSE 'quarantined' END,
    reason = CASE WHEN d.boot_id = excluded.boot_id THEN d.reason ELSE '{NOT_ATTESTED}' END,
    load_group = CASE WHEN d.boot_id = excluded.boot_id THEN d.load_group END,
    load_sweep = CASE WHEN d.boot_id = excluded.boot_id THEN d.load_sweep END,
    load_since = CASE WHEN d.boot_id = excluded.boot_id THEN d.load_since END,
    state_since = CASE WHEN d.boot_id = excluded.boot_id THEN d.state_since ELSE clock_timestamp() END
RETURNING state
""")
_MOVE = """
UPDATE device SET state = {state}, reason = {reason}, state_since = clock_timestamp(), last_seen = clock_timestamp()
    {more}
WHERE id = :device AND boot_id = :boot AND state IN ({before}) RETURNING state
"""
_READY = "CASE WHEN draining THEN 'draining' ELSE 'free' END"
_ATTEST = text(
    _MOVE.format(
        state=_READY,
        reason="NULL",
        before="'quarantined', 'lost', 'releasing', 'free', 'draining'",
        more=", ceiling = coalesce(CAST(:ceiling AS jsonb), ceiling),"
        " fingerprint_digest = coalesce(:digest, fingerprint_digest)",
    )
)
_RELEASE = text(_MOVE.format(state=_READY, reason="NULL", before="'releasing'", more=""))
_QUARANTINE = text(
    _MOVE.format(
        state="'quarantined'",
        reason=":reason",
        before="'free', 'leased', 'releasing', 'quarantined', 'draining', 'lost'",
        more="",
    )
)
_DRAIN = text("""
UPDATE device SET draining = true, state = CASE WHEN state = 'free' THEN 'draining' ELSE state END,
    state_since = CASE WHEN state = 'free' THEN clock_timestamp() ELSE state_since END
WHERE id = :device RETURNING state
""")
_UNDRAIN = text("""
UPDATE device SET draining = false, state = CASE WHEN state = 'draining' THEN 'free' ELSE state END,
    state_since = CASE WHEN state = 'draining' THEN clock_timestamp() ELSE state_since END
WHERE id = :device RETURNING state
""")
_LOSE = text("""
UPDATE device SET state = 'lost', reason = :reason, state_since = clock_timestamp()
WHERE id = :device AND state <> 'lost' RETURNING id
""")
# Its job first, as everywhere, so that a renewal in the same transaction cannot meet a finish head-on.
_HEARTBEAT = Statement(
    "heartbeat",
    """
WITH held AS MATERIALIZED (
    SELECT j.id FROM lease_device l JOIN job j ON j.id = l.job_id WHERE l.device_id = :device FOR NO KEY UPDATE OF j
)
UPDATE device SET last_seen = clock_timestamp()
WHERE id = :device AND boot_id = :boot AND (SELECT count(*) FROM held) >= 0 RETURNING id
""",
    device="text",
    boot="text",
)


def register_device(c: Connection, declaration: DeviceDeclaration, boot_id: str) -> DeviceState:
    """State of the device: unchanged for the boot already known, `quarantined` until attested for a new one.

    A lease that an earlier boot still held is taken back: whoever held it is gone.
    """
    journal = Journal(declaration.id)
    known = c.execute(_BOOT, {"device": declaration.id}).scalar()
    if known is not None and known != boot_id:
        take_back(c, journal, declaration.id, "its actor was replaced", random.random(), DeviceState.QUARANTINED)  # noqa: S311
    values = {
        "device": declaration.id, "hardware_class": declaration.hardware_class, "node": declaration.node,
        "memory_bytes": declaration.memory_bytes, "host_memory_bytes": declaration.hardware.memory_bytes,
        "declared": declaration.declared, "has_gpu": declaration.hardware.gpu is not None,
        "declaration": declaration.model_dump_json(), "boot": boot_id,
    }  # fmt: skip
    state = DeviceState(c.execute(_REGISTER, values).scalar_one())
    if known != boot_id:
        journal.event("device_registered", device=declaration.id, hardware=declaration.hardware_class)
    journal.flush(c)
    return state


def attest(
    c: Connection,
    device_id: str,
    boot_id: str,
    ceiling: dict[str, Any] | None = None,
    fingerprint: Fingerprint | None = None,
) -> bool:
    """Whether the device is free (or draining) now: its actor holds it alone and found nothing foreign on it.

    False for a boot that is not the registered one, and while a job is leased to it.
    """
    digest = None if fingerprint is None else store_fingerprint(c, fingerprint)
    values = {"ceiling": None if ceiling is None else json.dumps(ceiling), "digest": digest}
    return _moved(c, _ATTEST, device_id, boot_id, **values)


def release(c: Connection, device_id: str, boot_id: str) -> bool:
    """Whether the device went from `releasing` to free (or draining): its actor says the cancelled child is gone."""
    return _moved(c, _RELEASE, device_id, boot_id)


def quarantine(c: Connection, device_id: str, boot_id: str, reason: str) -> bool:
    """Whether the device is quarantined now, with the reason shown. A lease it held is taken back."""
    journal = Journal(device_id)
    if c.execute(_BOOT, {"device": device_id}).scalar() == boot_id:
        take_back(c, journal, device_id, reason, random.random(), DeviceState.QUARANTINED)  # noqa: S311
    journal.flush(c)
    return _moved(c, _QUARANTINE, device_id, boot_id, reason=reason)


def mark_lost(c: Connection, device_id: str, reason: str) -> bool:
    """Whether the device is newly `lost`: its node or actor is gone. Its job goes back, or is given up, at once."""
    journal = Journal(device_id)
    taken = take_back(c, journal, device_id, reason, random.random(), DeviceState.LOST)  # noqa: S311
    lost = c.execute(_LOSE, {"device": device_id, "reason": reason}).first() is not None
    if lost:
        journal.event("device_lost", device=device_id, reason=reason)
    journal.flush(c)
    return lost or taken is not None


def drain(c: Connection, device_id: str) -> DeviceState:
    """State of the device; it takes no further job, the one it runs is finished. Raises NotFound."""
    return _set_draining(c, device_id, draining=True)


def undrain(c: Connection, device_id: str) -> DeviceState:
    """State of the device, which takes jobs again. Raises NotFound."""
    return _set_draining(c, device_id, draining=False)


def heartbeat(c: Connection, device_id: str, boot_id: str) -> bool:
    """Whether this boot is the registered one; if so it has been seen now."""
    return bool(_HEARTBEAT(c, {"device": device_id, "boot": boot_id}))


def record_child(c: Connection, device_id: str, boot_id: str, child: ChildRecord) -> bool:
    """Whether the measuring process's record was stored: what is known of it so far, at its end everything."""
    return store_child(c, device_id, boot_id, child)


def _set_draining(c: Connection, device_id: str, *, draining: bool) -> DeviceState:
    state = c.execute(_DRAIN if draining else _UNDRAIN, {"device": device_id}).scalar()
    if state is None:
        raise NotFound(f"there is no device {device_id!r}: `effillm devices` shows those there are")
    journal = Journal(device_id)
    journal.event("device_draining" if draining else "device_undrained", device=device_id, state=state)
    journal.flush(c)
    return DeviceState(state)


def _moved(c: Connection, statement: Any, device_id: str, boot_id: str, **values: Any) -> bool:
    state = c.execute(statement, {"device": device_id, "boot": boot_id, **values}).scalar()
    if state is None:
        return False
    journal = Journal(device_id)
    journal.event(f"device_{state}", device=device_id, reason=values.get("reason"))
    journal.flush(c)
    return True
