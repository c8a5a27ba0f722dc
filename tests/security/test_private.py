"""Every route × another owner's ids: what is private to Ada is not there for Bob."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from effillm_server.api import examples, pages
from tests.support.keys import bearer
from tests.support.people import PRIVATE_NAME, Lab
from tests.support.routes import Operation, operations

BODY_OR_QUERY = {
    "GET /v1/compare", "GET /v1/events", "POST /v1/recommendations", "GET /compare", "GET /recommend",
}  # fmt: skip
# What a sweep is named by in the query of a page or a stream.
BY_QUERY: dict[str, dict[str, str]] = {
    "GET /v1/events": {"sweep": "{}", "follow": "false", "after": "0"},
    "GET /compare": {"a": "{}", "b": "{}"},
    "GET /recommend": {"sweep": "{}"},
}


def aimed() -> list[Operation]:
    """Everything that takes the id of a sweep or of a job, in whatever place."""
    return [
        operation for operation in operations()
        if "{sweep_id}" in operation.path or "{job_id}" in operation.path or str(operation) in BODY_OR_QUERY
    ]  # fmt: skip


def ask(lab: Lab, operation: Operation, key: str, sweep: str, job: int) -> httpx.Response:
    wanted: dict[str, Any] = operation.request(sweep_id=sweep, job_id=job)
    if str(operation) in BY_QUERY:
        wanted["params"] = {name: value.replace("{}", sweep) for name, value in BY_QUERY[str(operation)].items()}
    wanted["headers"] = wanted.get("headers", {}) | bearer(key)
    return lab.api.http.request(**wanted)


def shape(answer: httpx.Response) -> tuple[Any, ...]:
    """What an answer tells, less the ids that were asked for and its own."""
    return answer.status_code, answer.headers.get("content-type"), len(answer.headers)


def test_every_route_answers_for_a_private_sweep_as_for_one_that_does_not_exist(lab: Lab) -> None:
    tried = 0
    for operation in aimed():
        hidden = ask(lab, operation, lab.keys["bob"], lab.private, lab.private_jobs[0])
        absent = ask(lab, operation, lab.keys["bob"], "s000000000000", 2**40)
        assert shape(hidden) == shape(absent), (str(operation), hidden.text[:300], absent.text[:300])
        assert hidden.status_code in (404, 200), str(operation)  # a page of a form shows the problem inside
        assert PRIVATE_NAME not in hidden.text
        told = hidden.text.replace(lab.private, "*").replace(str(lab.private_jobs[0]), "*")
        assert len(told) <= len(absent.text) + 400, (str(operation), hidden.text[:600])
        tried += 1
    assert tried >= 25


def test_routes_of_the_rest_interface_say_404(lab: Lab) -> None:
    for operation in aimed():
        if not operation.is_page:
            answer = ask(lab, operation, lab.keys["bob"], lab.private, lab.private_jobs[0])
            assert answer.status_code == 404, (str(operation), answer.text[:200])


def test_a_reader_of_the_same_name_of_scope_sees_nothing_either(lab: Lab) -> None:
    for whose in ("reader", "bob"):
        assert lab.api.http.get(f"/v1/sweeps/{lab.private}", headers=bearer(lab.keys[whose])).status_code == 404


def test_an_answer_that_is_shared_by_many_who_ask_at_once_is_not_shared_with_those_who_may_not_have_it(
    lab: Lab,
) -> None:
    expected = {"ada": 200, "admin": 200, "bob": 404, "reader": 404}
    paths = [f"/v1/sweeps/{lab.private}", f"/v1/sweeps/{lab.private}/jobs"]

    def look(turn: tuple[str, str]) -> tuple[str, httpx.Response]:
        whose, path = turn
        return whose, lab.api.http.get(path, headers=bearer(lab.keys[whose]))

    with ThreadPoolExecutor(16) as crowd:
        for whose, answer in crowd.map(look, [(whose, path) for path in paths for whose in expected] * 10):
            assert answer.status_code == expected[whose]
            assert (PRIVATE_NAME in answer.text or '"items"' in answer.text) == (expected[whose] == 200)
        lists = crowd.map(look, [(whose, path) for path in ("/v1/sweeps", "/v1/devices") for whose in expected] * 10)
        for whose, answer in lists:
            assert answer.status_code == 200
            if expected[whose] == 404:
                assert lab.private not in answer.text and not {
                    device["job"] for device in answer.json()["items"] if "job" in device
                } & set(lab.private_jobs)


@pytest.mark.parametrize("whose", ["ada", "admin"])
def test_its_owner_and_admins_see_it(lab: Lab, whose: str) -> None:
    for operation in aimed():
        if operation.method == "GET":
            answer = ask(lab, operation, lab.keys[whose], lab.private, lab.private_jobs[0])
            assert answer.status_code == 200, (str(operation), answer.text[:300])


def test_lists_leave_it_out(lab: Lab) -> None:
    def names(whose: str) -> set[str]:
        answer = lab.api.http.get("/v1/sweeps", headers=bearer(lab.keys[whose]))
        return {sweep["id"] for sweep in answer.json()["items"]}

    assert names("ada") == names("admin") == {lab.private, lab.shared}
    assert names("bob") == names("reader") == {lab.shared}
    page = lab.api.http.get("/sweeps", headers=bearer(lab.keys["bob"]))
    assert lab.shared in page.text and lab.private not in page.text and PRIVATE_NAME not in page.text


def test_a_cursor_made_of_its_id_finds_nothing(lab: Lab) -> None:
    # Behind the newest sweep, which is the private one, there is the lab sweep; who may not know of it finds no page.
    cursor = pages.encode("sweeps", lab.private)
    for whose, expected in (("ada", [lab.shared]), ("bob", [])):
        answer = lab.api.http.get("/v1/sweeps", params={"after": cursor}, headers=bearer(lab.keys[whose]))
        assert [sweep["id"] for sweep in answer.json()["items"]] == expected, whose


def told(lab: Lab, whose: str) -> list[dict[str, Any]]:
    """Every event of the stream, from the first."""
    answer = lab.api.http.get("/v1/events?after=0&follow=false", headers=bearer(lab.keys[whose]))
    return [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: ")]


def test_the_stream_of_all_events_has_none_of_it(lab: Lab) -> None:
    to_ada, to_bob = told(lab, "ada"), told(lab, "bob")
    assert {event["sweep"] for event in to_ada} >= {lab.private, lab.shared}
    assert {event["sweep"] for event in to_bob} == {lab.shared, None}
    assert not {event["job"] for event in to_bob} & set(lab.private_jobs)
    assert PRIVATE_NAME not in json.dumps(to_bob)


def test_a_device_that_measures_it_is_busy_and_no_more(lab: Lab) -> None:
    def device(whose: str) -> dict[str, Any]:
        items = lab.api.http.get("/v1/devices", headers=bearer(lab.keys[whose])).json()["items"]
        return next(dict(item) for item in items if item["id"] == lab.busy_device)

    seen, hidden = device("ada"), device("bob")
    assert seen["job"] in lab.private_jobs and seen["load_group"]
    assert (hidden["state"], hidden["reason"], hidden["job"], hidden["load_group"]) == ("leased", "busy", None, None)
    assert hidden["details"]["fence"] is None
    page = lab.api.http.get("/devices", headers=bearer(lab.keys["bob"]))
    assert page.status_code == 200
    assert lab.private not in page.text and f"/jobs/{seen['job']}" not in page.text


def test_fields_that_the_server_sets_are_refused(lab: Lab) -> None:
    for field, value in (("owner", "ada"), ("id", lab.private), ("state", "measured"), ("total", 1)):
        answer = lab.api.http.post(
            "/v1/sweeps/preview", json=examples.DEFINITION | {field: value}, headers=bearer(lab.keys["bob"])
        )
        assert answer.status_code == 422, field
        assert field in answer.json()["detail"]
