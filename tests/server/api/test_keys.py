"""Keys: made, shown once, used, listed, revoked."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from effillm_server import credentials
from tests.support.api import Api, serving
from tests.support.keys import ADMIN_KEY, bearer, make_key


@pytest.fixture
def guarded(database_url: str) -> Iterator[Api]:
    """A server that asks for keys, with the client of its admin."""
    with serving(database_url, require_keys=True, admin_key=ADMIN_KEY) as api:
        api.http.headers.update(bearer(ADMIN_KEY))
        yield api


def test_a_key_is_shown_once_and_opens_what_its_scope_says(guarded: Api) -> None:
    made = guarded.http.post("/v1/keys", json={"owner": "ada", "scopes": ["read"]})
    assert made.status_code == 201, made.text
    text = made.json()["key"]
    assert text.startswith(made.json()["prefix"]) and len(text) == 47
    assert guarded.http.get("/v1/sweeps", headers=bearer(text)).status_code == 200
    assert guarded.http.post("/v1/sweeps", json={}, headers=bearer(text)).status_code == 403
    listed = guarded.http.get("/v1/keys")
    assert text not in listed.text
    assert [key["owner"] for key in listed.json()["items"]] == ["ada", "admin"]


def test_what_is_stored_of_a_key_is_its_hash(guarded: Api) -> None:
    text = make_key(guarded, "ada", "submit")["key"]
    with guarded.engine.connect() as c:
        stored = c.exec_driver_sql("SELECT row_to_json(k)::text, hash FROM api_key k WHERE owner = 'ada'").one()
    assert text[12:] not in stored[0]
    assert bytes(stored[1]) == credentials.digest(text)


def test_a_revoked_key_opens_nothing_from_now_on(guarded: Api) -> None:
    key = make_key(guarded, "ada", "read")
    assert guarded.http.get("/v1/sweeps", headers=bearer(key["key"])).status_code == 200
    revoked = guarded.http.delete(f"/v1/keys/{key['id']}")
    assert revoked.json()["revoked_at"] is not None
    answer = guarded.http.get("/v1/sweeps", headers=bearer(key["key"]))
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
