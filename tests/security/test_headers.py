"""What every answer carries so that a browser lets nobody else use it."""

from __future__ import annotations

import re

import httpx
import pytest

from tests.support.keys import bearer
from tests.support.people import Lab
from tests.support.routes import Operation, operations

FOREVER = ("/static/",)


def ask(lab: Lab, operation: Operation, key: str | None) -> httpx.Response:
    wanted = operation.request(sweep_id=lab.shared, job_id=lab.shared_job, device_id="none", name="app.css")
    if "figures/{name}" in operation.path:
        wanted["url"] = wanted["url"].replace("app.css", "none")
    wanted["headers"] = wanted.get("headers", {}) | {"Accept": "text/html,*/*"} | (bearer(key) if key else {})
    lab.api.http.cookies.clear()
    return lab.api.http.request(**wanted)


@pytest.mark.parametrize("whose", [None, "reader"])
def test_every_answer_carries_them(lab: Lab, whose: str | None) -> None:
    for operation in operations():
        answer = ask(lab, operation, lab.keys[whose] if whose else None)
        headers, where = answer.headers, f"{operation}: {answer.status_code}"
        assert headers["x-content-type-options"] == "nosniff", where
        assert headers["x-frame-options"] == "DENY", where
        assert headers["referrer-policy"] == "same-origin", where
        assert headers["cross-origin-resource-policy"] == "same-origin", where
        assert re.fullmatch(r"[0-9a-f]{16}", headers["x-request-id"]), where
        assert "server" not in headers and "x-powered-by" not in headers, where
        assert "access-control-allow-origin" not in headers, where
        policy = headers["content-security-policy"]
        assert "frame-ancestors 'none'" in policy and re.search(r"default-src '(none|self)'", policy), where
        if not operation.path.startswith(FOREVER):
            assert headers["cache-control"] == "no-store", where


def test_pages_run_no_script_but_our_own_files(lab: Lab) -> None:
    for operation in operations():
        if operation.method != "GET" or not operation.is_page or operation.path.startswith(FOREVER):
            continue
        answer = ask(lab, operation, lab.keys["reader"])
        policy = answer.headers["content-security-policy"]
        scripts = next((part for part in policy.split(";") if part.strip().startswith("script-src")), "")
        assert "unsafe" not in scripts and "http" not in scripts and "*" not in scripts, (str(operation), policy)
        assert "<script>" not in answer.text, str(operation)
        assert not re.search(r"\son[a-z]+\s*=\s*[\"']", answer.text), str(operation)


def test_a_report_that_runs_what_it_carries_is_in_an_origin_of_its_own(lab: Lab) -> None:
    answer = lab.api.http.get(
        f"/v1/sweeps/{lab.shared}/report.html?interactive=true", headers=bearer(lab.keys["reader"])
    )
    policy = answer.headers["content-security-policy"]
    assert "sandbox allow-scripts" in policy and "allow-same-origin" not in policy
    assert "connect-src" not in policy and "default-src 'none'" in policy


def test_no_other_origin_is_let_in(lab: Lab) -> None:
    preflight = lab.api.http.options(
        "/v1/sweeps", headers={"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    )
    assert preflight.status_code in (401, 405)
    assert not [name for name in preflight.headers if name.startswith("access-control")]


@pytest.mark.parametrize("method", ["TRACE", "CONNECT", "PROPFIND", "PUT", "PATCH", "X" * 30])
def test_methods_that_nothing_serves_are_refused(lab: Lab, method: str) -> None:
    answer = lab.api.http.request(method, "/v1/sweeps", headers=bearer(lab.keys["admin"]))
    assert answer.status_code in (400, 405)
