"""Keys: made, shown once, used, listed, revoked."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from effillm_server import credentials
from effillm_server.api import examples
from effillm_server.api.keyring import REMEMBERED_S, Keyring
from effillm_server.errors import BadInput
from effillm_server.settings import Settings
from tests.support.api import Api, serving
from tests.support.clock import FakeClock
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


def test_an_idempotency_key_belongs_to_its_owner(guarded: Api) -> None:
    """Bob's use of Ada's key neither finds her sweep nor tells that there is one."""
    body = examples.DEFINITION | {"visibility": "private"}
    named = {"Idempotency-Key": "nightly"}
    ada, bob = (bearer(make_key(guarded, who, "submit")["key"]) for who in ("ada", "bob"))
    first = guarded.http.post("/v1/sweeps", json=body, headers=named | ada)
    second = guarded.http.post("/v1/sweeps", json=body | {"name": "another"}, headers=named | bob)
    assert (first.status_code, second.status_code) == (201, 201)
    assert first.json()["id"] != second.json()["id"]
    assert guarded.http.post("/v1/sweeps", json=body, headers=named | ada).json()["id"] == first.json()["id"]
    assert (first.json()["owner"], second.json()["owner"]) == ("ada", "bob")


@pytest.mark.parametrize(("wanted", "field"), [
    ({"owner": "<script>"}, "owner"), ({"owner": ""}, "owner"), ({"owner": "x" * 65}, "owner"),
    ({"owner": "ada", "scopes": []}, "scopes"), ({"owner": "ada", "scopes": ["root"]}, "scopes"),
    ({"owner": "ada", "key": "mine"}, "key"), ({"owner": "ada", "expires_at": "2001-01-01T00:00:00Z"}, "expires_at"),
    ({"owner": "ada", "expires_at": "2101-01-01T00:00:00"}, "expires_at"), ({"owner": "ada", "lifetime_days": 0}, "lifetime"),
    ({"owner": "ada", "lifetime_days": 1, "expires_at": "2101-01-01T00:00:00Z"}, "lifetime_days"),
])  # fmt: skip
def test_a_key_that_cannot_be_is_refused_and_the_field_named(guarded: Api, wanted: dict[str, Any], field: str) -> None:
    answer = guarded.http.post("/v1/keys", json=wanted)
    assert answer.status_code == 422
    assert field in answer.text
    assert len(guarded.http.get("/v1/keys").json()["items"]) == 1


def test_a_key_ends_when_its_lifetime_does(guarded: Api) -> None:
    key = make_key(guarded, "ada", "read", lifetime_days=1)
    with guarded.engine.begin() as c:
        left = c.exec_driver_sql(
            "SELECT extract(epoch FROM expires_at - clock_timestamp()) FROM api_key WHERE owner = 'ada'"
        )
        assert 86_300 < float(left.scalar_one()) <= 86_400
        c.exec_driver_sql("UPDATE api_key SET expires_at = clock_timestamp() WHERE owner = 'ada'")
    assert guarded.http.get("/v1/sweeps", headers=bearer(key["key"])).status_code == 401


def test_the_last_use_of_a_key_is_kept(guarded: Api) -> None:
    key = make_key(guarded, "ada", "read")
    assert key["last_used_at"] is None
    guarded.http.get("/v1/sweeps", headers=bearer(key["key"]))
    listed = guarded.http.get("/v1/keys").json()["items"][0]
    assert datetime.now(UTC) - datetime.fromisoformat(listed["last_used_at"]) < timedelta(minutes=1)


def test_keys_are_listed_page_by_page(guarded: Api) -> None:
    for number in range(5):
        make_key(guarded, f"owner-{number}", "read")
    found, after = [], None
    while True:
        page = guarded.http.get("/v1/keys", params={"limit": 2} | ({"after": after} if after else {})).json()
        found += [key["owner"] for key in page["items"]]
        after = page["next"]
        if after is None:
            break
    assert found == [f"owner-{number}" for number in reversed(range(5))] + ["admin"]


def test_a_revoked_key_is_known_to_another_process_within_five_seconds(database_url: str) -> None:
    """Two servers over one database: what one revokes the other remembers for two seconds, and no longer."""
    with serving(database_url, require_keys=True, admin_key=ADMIN_KEY) as here:
        key = make_key(here, "ada", "read")
        clock = FakeClock()
        there = Keyring(here.engine, Settings(require_keys=True), clock)
        assert there.key(key["key"]) is not None
        here.http.delete(f"/v1/keys/{key['id']}", headers=bearer(ADMIN_KEY))
        clock.now_s += REMEMBERED_S - 0.1
        assert there.key(key["key"]) is not None
        clock.now_s += 0.2
        assert there.key(key["key"]) is None
        assert REMEMBERED_S < 5


def test_an_open_stream_ends_with_its_key(guarded: Api) -> None:
    key = make_key(guarded, "ada", "read")
    with guarded.http.stream("GET", "/v1/events", headers=bearer(key["key"])) as stream:
        lines = stream.iter_lines()
        assert next(lines).startswith("retry:")
        revoked_at = time.monotonic()
        assert guarded.http.delete(f"/v1/keys/{key['id']}").status_code == 200
        list(lines)  # until the server ends it
        assert time.monotonic() - revoked_at < 5


def test_the_admin_key_of_the_operator_is_stored_once_and_stays_revoked(database_url: str) -> None:
    for _ in range(2):
        with serving(database_url, require_keys=True, admin_key=ADMIN_KEY) as api:
            (key,) = api.http.get("/v1/keys", headers=bearer(ADMIN_KEY)).json()["items"]
            assert key["owner"] == "admin"
    with serving(database_url, require_keys=True, admin_key=ADMIN_KEY) as api:
        assert api.http.delete(f"/v1/keys/{key['id']}", headers=bearer(ADMIN_KEY)).status_code == 200
    with (
        pytest.raises(BadInput, match="revoked or expired"),
        serving(database_url, require_keys=True, admin_key=ADMIN_KEY),
    ):
        pass


def test_a_server_that_asks_for_keys_does_not_start_while_no_admin_has_one(database_url: str) -> None:
    for settings in ({"host": "0.0.0.0"}, {"require_keys": True}):
        with (
            pytest.raises(BadInput, match=r"EFFILLM_ADMIN_KEY.*openssl rand -hex 32"),
            serving(database_url, **settings),
        ):
            pass


def test_streams_of_one_key_ask_the_database_once_for_all_of_them(guarded: Api) -> None:
    key = make_key(guarded, "ada", "read")
    clock = FakeClock()
    keyring = Keyring(guarded.engine, Settings(require_keys=True), clock)
    assert not keyring.was_valid_just_now(key["id"])
    assert keyring.is_valid(key["id"]) and keyring.was_valid_just_now(key["id"])
    clock.now_s += REMEMBERED_S
    assert not keyring.was_valid_just_now(key["id"])
    guarded.http.delete(f"/v1/keys/{key['id']}")
    assert not keyring.is_valid(key["id"]) and not keyring.was_valid_just_now(key["id"])
    assert not keyring.is_valid(2**62)
