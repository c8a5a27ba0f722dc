"""Keys of several people on a server that asks for them."""

from __future__ import annotations

from typing import Any

from tests.support.api import Api

ADMIN_KEY = "an-admin-key-that-only-the-tests-know-0123456789"


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def make_key(api: Api, owner: str, *scopes: str, **more: Any) -> dict[str, Any]:
    """The answer to making a key, its text as `key`."""
    made = api.http.post("/v1/keys", json={"owner": owner, "scopes": list(scopes), **more}, headers=bearer(ADMIN_KEY))
    assert made.status_code == 201, made.text
    return dict(made.json())
