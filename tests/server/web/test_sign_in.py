"""Signing in and out in a browser, and what a signed-in browser must bring to change anything."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import httpx
import pytest

from effillm_server.web.sign_in import HOME, here
from tests.server.web.conftest import Lab
from tests.support.pages import Markup

HTML = {"Accept": "text/html"}


@pytest.fixture
def browser(lab: Lab) -> Iterator[httpx.Client]:
    """A client with cookies of its own."""
    with closing(httpx.Client(base_url=lab.api.http.base_url, headers=HTML, trust_env=False, timeout=120)) as client:
        yield client


def origin(browser: httpx.Client) -> str:
    return str(browser.base_url).rstrip("/")


def link(lab: Lab) -> str:
    return str(lab.api.http.post("/v1/session/links").json()["path"])


def test_the_link_signs_a_browser_in_once(lab: Lab, browser: httpx.Client) -> None:
    path = link(lab)
    entered = browser.get(path)
    assert (entered.status_code, entered.headers["location"]) == (303, HOME)
    cookie = entered.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=lax" in cookie
    assert "Sign out" in browser.get("/sweeps").text
    again = httpx.get(f"{origin(browser)}{path}", headers=HTML, trust_env=False, timeout=120)
    assert again.status_code == 401
    assert "has been used" in Markup.of(again.text).text


def test_a_wrong_key_is_told_at_its_field(browser: httpx.Client) -> None:
    answer = browser.post("/login", data={"key": "eff_wrong", "to": "/devices"})
    assert answer.status_code == 401
    markup = Markup.of(answer.text)
    assert markup.all("p", id="key-error", role="alert") != []
    assert markup.all("input", name="to", value="/devices") != []
    assert "eff_wrong" not in answer.text


def test_a_change_without_the_sessions_token_is_refused(lab: Lab, browser: httpx.Client) -> None:
    browser.get(link(lab))
    sweep = lab.api.submit(hardware=["a10"])["id"]
    assert browser.post(f"/sweeps/{sweep}/cancel", data={}).status_code == 403
    (token,) = {at["value"] for at in Markup.of(browser.get(f"/sweeps/{sweep}").text).all("input", name="csrf")}
    assert browser.post(f"/sweeps/{sweep}/cancel", data={"csrf": "x" + token[1:]}).status_code == 403
    assert browser.post(f"/sweeps/{sweep}/cancel", data={"csrf": token}).status_code == 303
    assert lab.api.http.get(f"/v1/sweeps/{sweep}").json()["state"] == "cancelled"


def test_signing_out_ends_the_session(lab: Lab, browser: httpx.Client) -> None:
    browser.get(link(lab))
    (token, *_) = [at["value"] for at in Markup.of(browser.get("/devices").text).all("input", name="csrf")]
    cookies = dict(browser.cookies)
    left = browser.post("/logout", data={"csrf": token})
    assert (left.status_code, left.headers["location"]) == (303, "/login")
    stale = httpx.get(f"{origin(browser)}/sweeps", cookies=cookies, headers=HTML, trust_env=False, timeout=120)
    assert "Sign out" not in stale.text


@pytest.mark.parametrize(
    "to", ["//evil.example", "https://evil.example", "/\\evil.example", "javascript:alert(1)", "", "sweeps", "/a\nb"]
)
def test_nobody_is_sent_to_another_site(to: str) -> None:
    assert here(to) == HOME


def test_one_goes_on_where_one_wanted_to_go() -> None:
    assert here("/sweeps/abc?colour=state") == "/sweeps/abc?colour=state"
