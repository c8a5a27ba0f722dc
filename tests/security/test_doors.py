"""Every route without a key, with a wrong, a revoked, an expired and a lesser one."""

from __future__ import annotations

import httpx
import pytest

from effillm_server import credentials
from effillm_server.api.auth import Scope
from tests.support.keys import bearer
from tests.support.people import Lab
from tests.support.routes import Operation, operations

# What answers whoever asks: it tells nothing of the lab.
OPEN = {
    "GET /healthz", "GET /readyz", "GET /openapi.json", "GET /static/{name:path}", "GET /login", "POST /login",
    "POST /v1/session", "GET /",
}  # fmt: skip
# Any valid key.
ANYBODY = {"GET /v1/session", "DELETE /v1/session", "POST /v1/session/links", "POST /logout"}
ADMIN = {
    "GET /v1/audit", "GET /v1/keys", "POST /v1/keys", "DELETE /v1/keys/{key_id}", "POST /v1/devices/{device_id}/drain",
    "POST /v1/devices/{device_id}/undrain", "POST /devices/{device_id}/drain", "POST /devices/{device_id}/undrain",
}  # fmt: skip
ADMIN_PAGES = ("/keys", "/audit")
SUBMITTING_PAGES = {"GET /sweeps/new"}
# Changes that any reader may ask for, because nothing is changed.
READING_POSTS = {"POST /v1/recommendations"}


def needed(operation: Operation) -> Scope | None:
    """The scope that a route must ask for, by what it does; None for those that are open or for any key."""
    if str(operation) in OPEN | ANYBODY:
        return None
    if str(operation) in ADMIN or operation.path.startswith(ADMIN_PAGES):
        return Scope.ADMIN
    if str(operation) in SUBMITTING_PAGES:
        return Scope.SUBMIT
    if operation.method == "GET" or str(operation) in READING_POSTS:
        return Scope.READ
    return Scope.SUBMIT


def closed() -> list[Operation]:
    return [operation for operation in operations() if str(operation) not in OPEN]


def ask(lab: Lab, operation: Operation, headers: dict[str, str]) -> httpx.Response:
    wanted = operation.request(sweep_id=lab.shared, job_id=lab.shared_job)
    wanted["headers"] = wanted.get("headers", {}) | headers
    lab.api.http.cookies.clear()
    return lab.api.http.request(**wanted)


def test_the_open_routes_are_these_and_no_others() -> None:
    known = {str(operation) for operation in operations()}
    assert known >= OPEN | ANYBODY | ADMIN | READING_POSTS
    assert len(known) >= 50


BAD = {
    "nothing": {},
    "wrong": bearer(credentials.new_key()),
    "malformed": bearer("eff_"),
    "empty": {"Authorization": ""},
    "other scheme": {"Authorization": f"Basic {'x' * 40}"},
    "wrong cookie": {"Cookie": f"effillm_session={'x' * 43}"},
}


def refused(lab: Lab, operation: Operation, headers: dict[str, str]) -> None:
    answer = ask(lab, operation, headers)
    assert answer.status_code == 401, (str(operation), answer.status_code, answer.text[:200])
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("shown", ["nothing", "wrong"])
def test_nobody_is_served_who_shows_no_valid_key(lab: Lab, shown: str) -> None:
    for operation in closed():
        refused(lab, operation, BAD[shown])


def test_a_key_that_has_been_revoked_opens_nothing(lab: Lab) -> None:
    for operation in closed():
        refused(lab, operation, bearer(lab.keys["revoked"]))


@pytest.mark.parametrize("shown", ["malformed", "empty", "other scheme", "wrong cookie"])
def test_what_is_no_key_opens_nothing(lab: Lab, shown: str) -> None:
    # A route of each kind: who asks is found out in one place for all of them.
    for operation in closed()[:: len(closed()) // 5]:
        refused(lab, operation, BAD[shown])


def test_a_key_that_has_expired_opens_nothing(lab: Lab) -> None:
    for operation in closed()[:: len(closed()) // 5]:
        refused(lab, operation, bearer(lab.keys["expired"]))


@pytest.mark.parametrize(("whose", "scopes"), [("reader", {Scope.READ}), ("bob", {Scope.READ, Scope.SUBMIT})])
def test_a_lesser_key_opens_what_its_scope_says_and_no_more(lab: Lab, whose: str, scopes: set[Scope]) -> None:
    refused = 0
    for operation in closed():
        scope = needed(operation)
        if scope is None or (scope in scopes and operation.method != "GET"):
            continue  # what a key may change is tried where it does no harm
        answer = ask(lab, operation, bearer(lab.keys[whose]))
        if scope in scopes:
            assert answer.status_code in (200, 303), (str(operation), answer.text[:300])
        else:
            assert answer.status_code == 403, (str(operation), answer.status_code, answer.text[:200])
            refused += 1
    assert refused >= 8


def test_another_owners_sweep_is_read_and_not_changed(lab: Lab) -> None:
    tried = 0
    for operation in closed():
        if operation.method != "POST" or not ("{sweep_id}" in operation.path or "{job_id}" in operation.path):
            continue
        answer = ask(lab, operation, bearer(lab.keys["bob"]))
        assert answer.status_code == 403, (str(operation), answer.text[:200])
        assert "ada" in answer.text
        tried += 1
    assert tried >= 8
    detail = lab.api.http.get(f"/v1/sweeps/{lab.shared}", headers=bearer(lab.keys["bob"])).json()
    assert (detail["owner"], detail["counts"]["measured"]) == ("ada", 4)
