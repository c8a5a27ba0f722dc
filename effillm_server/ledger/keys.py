"""Keys, browser sessions, one-time links and the audit trail: every statement about them.

What is secret comes in as its SHA-256 digest, so that reading the tables opens no door.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, text

from effillm_server.records import AuditRecord, KeyRecord, SessionRecord

# How exact `last_used_at` is: without it every request of a key would write its row.
LAST_USE_RESOLUTION_S = 60

_COLUMNS = "id, owner, prefix, scopes, created_at, expires_at, revoked_at, last_used_at"
_OF_KEY = ", ".join(f"k.{name}" for name in _COLUMNS.split(", "))
_VALID = "k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > clock_timestamp())"

_CREATE = text(f"""
INSERT INTO api_key (owner, prefix, hash, scopes, expires_at)
VALUES (:owner, :prefix, :hash, :scopes, coalesce(:expires_at, clock_timestamp() + make_interval(secs => :lifetime_s)))
ON CONFLICT (hash) DO NOTHING RETURNING {_COLUMNS}
""")
_BY_HASH = text(f"SELECT {_OF_KEY}, k.hash FROM api_key k WHERE k.hash = ANY(:hashes) AND {_VALID}")
_ONE = text(f"SELECT {_COLUMNS} FROM api_key WHERE id = :id")
_VALID_ONES = text(f"SELECT {_OF_KEY} FROM api_key k WHERE k.id = ANY(:ids) AND {_VALID}")
_ALL = text(f"SELECT {_COLUMNS} FROM api_key WHERE id < :before ORDER BY id DESC LIMIT :limit")
_HAS_ADMIN = text(f"SELECT EXISTS (SELECT FROM api_key k WHERE 'admin' = ANY(k.scopes) AND {_VALID})")
_REVOKE = text("UPDATE api_key SET revoked_at = clock_timestamp() WHERE id = :id AND revoked_at IS NULL")
_USED = text("""
UPDATE api_key SET last_used_at = clock_timestamp()
WHERE id = ANY(:ids) AND (last_used_at IS NULL OR last_used_at < clock_timestamp() - make_interval(secs => :resolution_s))
""")
_OPEN = text("""
INSERT INTO session (hash, api_key_id, expires_at)
VALUES (:hash, :key_id, clock_timestamp() + make_interval(secs => :lifetime_s))
""")
# A session of a key that is gone is no session: the outer join keeps those that never had one.
_SESSIONS = text(f"""
SELECT s.hash, s.expires_at AS session_expires_at, s.api_key_id, {_OF_KEY}
FROM session s LEFT JOIN api_key k ON k.id = s.api_key_id
WHERE s.hash = ANY(:hashes) AND s.expires_at > clock_timestamp() AND (s.api_key_id IS NULL OR ({_VALID}))
""")
_TAKE = text(f"""
WITH taken AS (DELETE FROM session WHERE hash = :hash RETURNING api_key_id, expires_at)
SELECT s.expires_at AS session_expires_at, s.api_key_id, {_OF_KEY}
FROM taken s LEFT JOIN api_key k ON k.id = s.api_key_id
WHERE s.expires_at > clock_timestamp() AND (s.api_key_id IS NULL OR ({_VALID}))
""")
_RECORD = text("""
INSERT INTO audit (actor, action, subject, request_id, data)
VALUES (:actor, :action, :subject, :request_id, CAST(:data AS jsonb))
""")
_AUDIT = text("""
SELECT id, at, actor, action, subject, request_id, data FROM audit
WHERE id < :before AND (CAST(:actor AS text) IS NULL OR actor = :actor)
    AND (CAST(:action AS text) IS NULL OR action = :action)
    AND (CAST(:subject AS text) IS NULL OR subject = :subject)
ORDER BY id DESC LIMIT :limit
""")
_ACCESS = text("""
SELECT j.id, s.visibility, s.owner FROM job j JOIN sweep s ON s.id = j.sweep_id WHERE j.id = ANY(:jobs)
""")
LAST = 2**63 - 1


def create_key(
    c: Connection, owner: str, scopes: Sequence[str], digest: bytes, prefix: str, *,
    expires_at: datetime | None = None, lifetime_s: float | None = None,
) -> KeyRecord | None:  # fmt: skip
    """The key, now stored, valid for ever or until `expires_at` or for `lifetime_s`; None when this very key is there already."""
    values = {
        "owner": owner, "scopes": list(scopes), "hash": digest, "prefix": prefix, "expires_at": expires_at,
        "lifetime_s": lifetime_s,
    }  # fmt: skip
    row = c.execute(_CREATE, values).first()
    return None if row is None else _key(row)


def keys_by_hash(c: Connection, digests: Sequence[bytes]) -> dict[bytes, KeyRecord]:
    """The valid keys with these digests, by digest."""
    return {bytes(row.hash): _key(row) for row in c.execute(_BY_HASH, {"hashes": list(digests)})}


def key(c: Connection, key_id: int) -> KeyRecord | None:
    """The key, valid or not, None if there is none."""
    row = c.execute(_ONE, {"id": key_id}).first()
    return None if row is None else _key(row)


def valid_keys(c: Connection, key_ids: Sequence[int]) -> dict[int, KeyRecord]:
    """Those of the keys that open anything, by id."""
    return {row.id: _key(row) for row in c.execute(_VALID_ONES, {"ids": list(key_ids)})}


def keys(c: Connection, before: int, limit: int) -> list[KeyRecord]:
    """A page of the keys, newest first, with an id below `before`."""
    return [_key(row) for row in c.execute(_ALL, {"before": before, "limit": limit})]


def has_admin_key(c: Connection) -> bool:
    """Whether anybody can do what only an admin may."""
    return bool(c.execute(_HAS_ADMIN).scalar_one())


def revoke_key(c: Connection, key_id: int) -> bool:
    """Whether the key was valid until now; its sessions end with it."""
    hit = c.execute(_REVOKE, {"id": key_id}).rowcount == 1
    c.execute(text("DELETE FROM session WHERE api_key_id = :id"), {"id": key_id})
    return hit


def used(c: Connection, key_ids: Sequence[int]) -> None:
    """Note that the keys are in use, to the minute."""
    c.execute(_USED, {"ids": list(key_ids), "resolution_s": LAST_USE_RESOLUTION_S})


def open_session(c: Connection, digest: bytes, key_id: int | None, lifetime_s: float) -> None:
    """Store a session, or a link that becomes one; what has expired is removed on the way."""
    c.execute(text("DELETE FROM session WHERE expires_at < clock_timestamp()"))
    c.execute(_OPEN, {"hash": digest, "key_id": key_id, "lifetime_s": lifetime_s})


def sessions(c: Connection, digests: Sequence[bytes]) -> dict[bytes, SessionRecord]:
    """The open sessions with these digests, by digest; none of a key that is valid no more."""
    return {bytes(row.hash): _session(row) for row in c.execute(_SESSIONS, {"hashes": list(digests)})}


def take_session(c: Connection, digest: bytes) -> SessionRecord | None:
    """The open session with this digest, and it is gone then: of several who ask at once, one gets it."""
    row = c.execute(_TAKE, {"hash": digest}).first()
    return None if row is None else _session(row)


def close_session(c: Connection, digest: bytes) -> bool:
    """Whether there was such a session."""
    return c.execute(text("DELETE FROM session WHERE hash = :hash"), {"hash": digest}).rowcount == 1


def record(
    c: Connection, actor: str | None, action: str, subject: str | None, request_id: str | None, data: dict[str, Any]
) -> None:
    """Keep that a change was made: in its transaction, so that there is no change without its line."""
    values = {"actor": actor, "action": action, "subject": subject, "request_id": request_id, "data": json.dumps(data)}
    c.execute(_RECORD, values)


def audit(
    c: Connection, before: int, limit: int, *, actor: str | None = None, action: str | None = None,
    subject: str | None = None,
) -> list[AuditRecord]:  # fmt: skip
    """A page of the audit trail, newest first, with an id below `before`."""
    values = {"before": before, "limit": limit, "actor": actor, "action": action, "subject": subject}
    return [AuditRecord(**row._asdict()) for row in c.execute(_AUDIT, values)]


def access_of(c: Connection, jobs: Sequence[int]) -> dict[int, tuple[str, str | None]]:
    """Visibility and owner of the sweeps that these jobs belong to, by job."""
    return {row.id: (row.visibility, row.owner) for row in c.execute(_ACCESS, {"jobs": list(jobs)})}


def _key(row: Any) -> KeyRecord:
    return KeyRecord(
        id=row.id, owner=row.owner, prefix=row.prefix, scopes=tuple(row.scopes), created_at=row.created_at,
        expires_at=row.expires_at, revoked_at=row.revoked_at, last_used_at=row.last_used_at,
    )  # fmt: skip


def _session(row: Any) -> SessionRecord:
    return SessionRecord(None if row.api_key_id is None else _key(row), row.session_expires_at)
