"""The examples of keys, sessions and the audit trail in the OpenAPI document."""

from __future__ import annotations

from typing import Any

# Stored nowhere but in the database of the test that sends the examples.
API_KEY = "eff_0000000000000000000000000000000000000000EXA"
KEY_ID = 1

KEY_REQUEST: dict[str, Any] = {"owner": "ada", "scopes": ["submit"], "lifetime_days": 90}
KEY: dict[str, Any] = {
    "id": KEY_ID,
    "owner": "ada",
    "prefix": "eff_7hQ2mK9x",
    "scopes": ["submit"],
    "created_at": "2026-01-31T08:00:00Z",
    "expires_at": "2026-05-01T08:00:00Z",
    "revoked_at": None,
    "last_used_at": None,
}
NEW_KEY: dict[str, Any] = KEY | {"key": "eff_7hQ2mK9x00000000000000000000000000000000000"}
SIGN_IN: dict[str, Any] = {"key": API_KEY}
SESSION: dict[str, Any] = {"owner": "ada", "scopes": ["submit"], "key": KEY_ID, "csrf": None}
SIGNED_OUT: dict[str, Any] = {"signed_out": True}
LINK: dict[str, Any] = {"path": "/login?token=Vb3…", "lifetime_s": 600.0}
AUDIT: dict[str, Any] = {
    "id": 41,
    "at": "2026-01-31T08:02:10Z",
    "actor": "ada",
    "action": "sweep.cancel",
    "subject": "s3kq7w2m4t6y",
    "request_id": "5f0c1d2e3a4b5c6d",
    "data": {"key": 1, "changed": 3},
}
