"""Browsers: signed in by a key or by a link, their cookie, the token of their changes, signed out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest

from effillm_server import credentials
from effillm_server.api import examples
from effillm_server.api.auth import COOKIE
from tests.support.api import Api, serving
from tests.support.keys import ADMIN_KEY, bearer, make_key


@pytest.fixture
def guarded(database_url: str) -> Iterator[Api]:
    with serving(database_url, require_keys=True, admin_key=ADMIN_KEY) as api:
        yield api


@contextmanager
def browser(api: Api) -> Iterator[httpx.Client]:
    """A client with a cookie jar of its own that says where its page is from, as browsers do."""
    origin = str(api.http.base_url).rstrip("/")
    headers = {"Origin": origin, "Sec-Fetch-Site": "same-origin"}
    with httpx.Client(base_url=origin, headers=headers, timeout=20, trust_env=False) as client:
        yield client


def signed_in(client: httpx.Client, key: str) -> str:
    """The CSRF token of a new session."""
    answer = client.post("/v1/session", json={"key": key})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["csrf"])


def test_a_key_becomes_a_cookie_that_scripts_cannot_read(guarded: Api) -> None:
    key = make_key(guarded, "ada", "submit")
    with browser(guarded) as client:
        answer = client.post("/v1/session", json={"key": key["key"]})
        cookie = answer.headers["set-cookie"]
        assert cookie.startswith(f"{COOKIE}=")
        assert all(word in cookie for word in ("HttpOnly", "SameSite=lax", "Path=/", "Max-Age=43200"))
        assert "Secure" not in cookie and "Domain" not in cookie
        assert key["key"] not in cookie
        who = client.get("/v1/session").json()
        assert (who["owner"], who["scopes"], who["key"]) == ("ada", ["submit"], key["id"])
        assert client.get("/v1/sweeps").status_code == 200


def test_under_tls_the_cookie_travels_encrypted_only(database_url: str) -> None:
    settings = {"public_url": "https://lab.example", "require_keys": True, "admin_key": ADMIN_KEY}
    with serving(database_url, **settings) as api:
        answer = api.http.post(
            "/v1/session", json={"key": ADMIN_KEY}, headers={"Origin": "https://lab.example", "Host": "lab.example"}
        )
        assert answer.status_code == 200, answer.text
        assert "Secure" in answer.headers["set-cookie"]
        elsewhere = api.http.post("/v1/session", json={"key": ADMIN_KEY}, headers={"Origin": "https://evil.example"})
        assert elsewhere.status_code == 403


def test_what_is_stored_of_a_session_is_a_hash(guarded: Api) -> None:
    with browser(guarded) as client:
        signed_in(client, ADMIN_KEY)
        token = client.cookies[COOKIE]
    with guarded.engine.connect() as c:
        row, stored = c.exec_driver_sql("SELECT row_to_json(s)::text, hash FROM session s").one()
    assert bytes(stored) == credentials.digest(token, "session")
    assert token not in row


@pytest.mark.parametrize("token", [None, "", "wrong", "0" * 64])
def test_a_change_by_cookie_needs_the_sessions_token(guarded: Api, token: str | None) -> None:
    with browser(guarded) as client:
        csrf = signed_in(client, ADMIN_KEY)
        headers = {} if token is None else {"X-CSRF-Token": token}
        refused = client.post("/v1/sweeps", json=examples.DEFINITION, headers=headers)
        assert refused.status_code == 403
        assert "X-CSRF-Token" in refused.json()["detail"]
        assert client.get("/v1/sweeps").json()["items"] == []
        accepted = client.post("/v1/sweeps", json=examples.DEFINITION, headers={"X-CSRF-Token": csrf})
        assert accepted.status_code == 201


def test_the_token_of_another_session_is_none(guarded: Api) -> None:
    with browser(guarded) as one, browser(guarded) as other:
        foreign = signed_in(one, ADMIN_KEY)
        signed_in(other, ADMIN_KEY)
        assert other.delete("/v1/session", headers={"X-CSRF-Token": foreign}).status_code == 403


@pytest.mark.parametrize("headers", [
    {"Origin": "https://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"},
])  # fmt: skip
def test_a_page_of_another_site_changes_nothing_though_it_had_the_token(guarded: Api, headers: dict[str, str]) -> None:
    with browser(guarded) as client:
        csrf = signed_in(client, ADMIN_KEY)
        answer = client.post("/v1/sweeps", json=examples.DEFINITION, headers={"X-CSRF-Token": csrf} | headers)
        assert answer.status_code == 403
        assert client.get("/v1/sweeps").json()["items"] == []


def test_a_key_in_the_header_needs_no_token_because_no_browser_sends_it_along(guarded: Api) -> None:
    answer = guarded.http.post("/v1/sweeps", json=examples.DEFINITION, headers=bearer(ADMIN_KEY))
    assert answer.status_code == 201


def test_signing_in_makes_a_new_session_whatever_cookie_was_there(guarded: Api) -> None:
    with browser(guarded) as client:
        client.cookies.set(COOKIE, "planted-by-somebody-else-0123456789abcdef", domain="127.0.0.1")
        signed_in(client, ADMIN_KEY)
        first = client.cookies[COOKIE]
        assert not first.startswith("planted")
        signed_in(client, ADMIN_KEY)
        assert client.cookies[COOKIE] != first
        client.cookies.clear()
        assert client.get("/v1/session", headers={"Cookie": f"{COOKIE}={first}"}).status_code == 401


def test_a_browser_signed_out_is_out_everywhere(guarded: Api) -> None:
    with browser(guarded) as client:
        csrf = signed_in(client, ADMIN_KEY)
        token = client.cookies[COOKIE]
        answer = client.delete("/v1/session", headers={"X-CSRF-Token": csrf})
        assert answer.json() == {"signed_out": True}
        assert COOKIE not in client.cookies
        kept = client.get("/v1/session", headers={"Cookie": f"{COOKIE}={token}"})
        assert kept.status_code == 401


def test_a_session_ends_with_its_key_and_with_its_time(guarded: Api) -> None:
    key = make_key(guarded, "ada", "read")
    with browser(guarded) as client, browser(guarded) as patient:
        signed_in(client, key["key"])
        guarded.http.delete(f"/v1/keys/{key['id']}", headers=bearer(ADMIN_KEY))
        assert client.get("/v1/session").status_code == 401
        signed_in(patient, ADMIN_KEY)
        with guarded.engine.begin() as c:
            c.exec_driver_sql("UPDATE session SET expires_at = clock_timestamp() - interval '1 s'")
        assert patient.get("/v1/session").status_code == 401


def test_a_link_signs_one_browser_in_once(guarded: Api) -> None:
    made = guarded.http.post("/v1/session/links", headers=bearer(ADMIN_KEY))
    assert made.status_code == 201
    with browser(guarded) as client, browser(guarded) as late:
        first = client.get(made.json()["path"])
        assert first.status_code == 303
        assert client.get("/v1/session").json()["owner"] == "admin"
        second = late.get(made.json()["path"])
        assert COOKIE not in late.cookies
        assert second.status_code == 401


def test_a_link_that_is_too_old_opens_nothing(guarded: Api) -> None:
    path = guarded.http.post("/v1/session/links", headers=bearer(ADMIN_KEY)).json()["path"]
    with guarded.engine.begin() as c:
        c.exec_driver_sql("UPDATE session SET expires_at = clock_timestamp() - interval '1 s'")
    with browser(guarded) as client:
        assert client.get(path).status_code == 401


def test_a_link_is_no_session_and_a_session_no_link(guarded: Api) -> None:
    path = guarded.http.post("/v1/session/links", headers=bearer(ADMIN_KEY)).json()["path"]
    with browser(guarded) as client:
        assert client.get("/v1/session", headers={"Cookie": f"{COOKIE}={path.partition('=')[2]}"}).status_code == 401
        signed_in(client, ADMIN_KEY)
        token = client.cookies[COOKIE]
    with browser(guarded) as other:
        assert other.get(f"/login?token={token}").status_code == 401


def test_where_no_keys_are_asked_for_a_link_signs_in_the_local_admin_until_they_are(database_url: str) -> None:
    with serving(database_url) as api, browser(api) as client:
        client.get(api.http.post("/v1/session/links").json()["path"])
        token = client.cookies[COOKIE]
        who = client.get("/v1/session").json()
        assert (who["owner"], who["scopes"]) == (None, ["admin", "read", "submit"])
        assert client.delete("/v1/session").status_code == 403  # its changes carry the token all the same
    with serving(database_url, require_keys=True, admin_key=ADMIN_KEY) as api, browser(api) as client:
        assert client.get("/v1/session", headers={"Cookie": f"{COOKIE}={token}"}).status_code == 401


@pytest.mark.parametrize(
    "key", ["", "eff_x", "x" * 300, credentials.new_key()], ids=["nothing", "short", "long", "unknown"]
)
def test_signing_in_with_what_is_no_key_is_refused(guarded: Api, key: str) -> None:
    with browser(guarded) as client:
        answer = client.post("/v1/session", json={"key": key})
        assert answer.status_code in (401, 422)
        assert COOKIE not in client.cookies
        assert not key or key not in answer.text.replace('"', "")
