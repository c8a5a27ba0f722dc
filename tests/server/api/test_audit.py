"""A line for every change, with who made it and the request it was."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from effillm_server.api import examples
from tests.support.api import Api, add_device, serving
from tests.support.keys import ADMIN_KEY, bearer, make_key


@pytest.fixture
def guarded(database_url: str) -> Iterator[Api]:
    with serving(database_url, require_keys=True, admin_key=ADMIN_KEY) as api:
        api.http.headers.update(bearer(ADMIN_KEY))
        yield api


def actions(api: Api, **filters: str) -> list[tuple[str | None, str, str | None]]:
    """Actor, action and subject, oldest first."""
    answer = api.http.get("/v1/audit", params=filters)
    assert answer.status_code == 200, answer.text
    return [(line["actor"], line["action"], line["subject"]) for line in reversed(answer.json()["items"])]


def test_every_change_has_its_line(guarded: Api) -> None:
    key = make_key(guarded, "ada", "submit")
    ada = bearer(key["key"])
    sweep = guarded.http.post("/v1/sweeps", json=examples.DEFINITION, headers=ada).json()["id"]
    job = guarded.http.get(f"/v1/sweeps/{sweep}/jobs").json()["items"][0]["id"]
    device = add_device(guarded.engine)
    for path in (f"jobs/{job}/cancel", f"jobs/{job}/retry", f"sweeps/{sweep}/cancel", f"sweeps/{sweep}/retry"):
        assert guarded.http.post(f"/v1/{path}", headers=ada).status_code == 200, path
    for path in (f"devices/{device}/drain", f"devices/{device}/undrain"):
        assert guarded.http.post(f"/v1/{path}").status_code == 200, path
    guarded.http.delete(f"/v1/keys/{key['id']}")
    assert actions(guarded) == [
        (None, "key.create", "1"), ("admin", "key.create", str(key["id"])), ("ada", "sweep.submit", sweep),
        ("ada", "job.cancel", str(job)), ("ada", "job.retry", str(job)), ("ada", "sweep.cancel", sweep),
        ("ada", "sweep.retry", sweep), ("admin", "device.drain", device), ("admin", "device.undrain", device),
        ("admin", "key.revoke", str(key["id"])),
    ]  # fmt: skip


def test_a_change_that_is_refused_or_only_repeated_has_none(guarded: Api) -> None:
    ada, bob = (bearer(make_key(guarded, who, "submit")["key"]) for who in ("ada", "bob"))
    named = {"Idempotency-Key": "once"}
    sweep = guarded.http.post("/v1/sweeps", json=examples.DEFINITION, headers=ada | named).json()["id"]
    assert guarded.http.post("/v1/sweeps", json=examples.DEFINITION, headers=ada | named).status_code == 200
    assert guarded.http.post(f"/v1/sweeps/{sweep}/cancel", headers=bob).status_code == 403
    assert guarded.http.post("/v1/sweeps", json={"name": "bad"}, headers=bob).status_code == 422
    assert [line for line in actions(guarded) if line[1].startswith("sweep")] == [("ada", "sweep.submit", sweep)]


def test_a_line_names_its_request_and_its_key_and_no_secret(guarded: Api) -> None:
    made = guarded.http.post("/v1/keys", json={"owner": "ada", "scopes": ["read"]})
    line = guarded.http.get("/v1/audit", params={"limit": 1}).json()["items"][0]
    assert line["request_id"] == made.headers["x-request-id"]
    assert line["data"] == {"key": 1, "owner": "ada", "prefix": made.json()["prefix"], "scopes": ["read"]}
    assert made.json()["key"] not in guarded.http.get("/v1/audit").text


def test_the_trail_is_filtered_and_paged(guarded: Api) -> None:
    for number in range(5):
        make_key(guarded, f"owner-{number}", "read")
    assert len(actions(guarded, actor="admin")) == 5
    assert actions(guarded, action="key.revoke") == []
    assert actions(guarded, subject="3") == [("admin", "key.create", "3")]
    first = guarded.http.get("/v1/audit", params={"limit": 4})
    second = guarded.http.get("/v1/audit", params={"limit": 4, "after": first.json()["next"]})
    ids = [line["id"] for page in (first, second) for line in page.json()["items"]]
    assert ids == sorted(ids, reverse=True) and len(set(ids)) == 6
    assert 'rel="next"' in first.headers["link"] and second.json()["next"] is None


def test_the_local_admin_is_in_it_as_nobody(api: Api) -> None:
    sweep = api.submit()
    assert actions(api) == [(None, "sweep.submit", sweep["id"])]
