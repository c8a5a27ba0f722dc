"""Signing in and out where keys are asked for, and a key that is revoked while its holder looks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, expect

from tests.support.api import Api, serving
from tests.support.browser import Visitor, visiting
from tests.support.keys import ADMIN_KEY, bearer, make_key

pytestmark = pytest.mark.browser


@pytest.fixture
def guarded(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    """A server that asks for keys."""
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with serving(database_url, require_keys=True, admin_key=ADMIN_KEY) as api:
        yield api


@pytest.fixture
def stranger(chromium: Browser, guarded: Api) -> Iterator[Visitor]:
    with visiting(chromium, str(guarded.http.base_url).rstrip("/")) as visitor:
        # What a door says with its status, the console repeats, and htmx too where a live page comes to the door by itself.
        visitor.forgiven = ("the server responded with a status of 401", "Response Status Error Code 401")
        yield visitor


def sign_in(visitor: Visitor, key: str) -> None:
    visitor.page.get_by_label("API key").fill(key)
    visitor.page.get_by_role("button", name="Sign in").click()


def test_a_key_signs_in_to_where_one_wanted_to_go_and_signing_out_ends_it(guarded: Api, stranger: Visitor) -> None:
    page = stranger.go("/devices")
    expect(page).to_have_url(f"{stranger.origin}/login?to=%2Fdevices")
    sign_in(stranger, "eff_this-is-no-key")
    expect(page.get_by_role("alert")).to_contain_text("unknown, expired or revoked")
    sign_in(stranger, make_key(guarded, "ada", "submit")["key"])
    expect(page).to_have_url(f"{stranger.origin}/devices")
    expect(page.locator(".user")).to_contain_text("ada")
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_label("API key")).to_be_visible()
    stranger.go("/devices")
    expect(page.get_by_label("API key")).to_be_visible()


def test_a_reader_is_offered_nothing_that_they_may_not_do(guarded: Api, stranger: Visitor) -> None:
    sweep = guarded.http.post(
        "/v1/sweeps", headers=bearer(ADMIN_KEY),
        json={"name": "s", "models": [{"id": "facebook/opt-125m", "weights": "synthetic"}], "hardware": ["cpu"], "quantization": ["fp32"]},
    ).json()["id"]  # fmt: skip
    page = stranger.go("/sweeps")
    sign_in(stranger, make_key(guarded, "ben", "read")["key"])
    expect(page.get_by_role("heading", name="Sweeps")).to_be_visible()
    expect(page.get_by_role("link", name="Submit a sweep")).to_have_count(0)
    stranger.go(f"/sweeps/{sweep}")
    expect(page.get_by_text("Cancel…")).to_have_count(0)


def test_a_revoked_key_shows_the_door_at_the_next_step(guarded: Api, stranger: Visitor) -> None:
    key = make_key(guarded, "eve", "read")
    page = stranger.go("/sweeps")
    sign_in(stranger, key["key"])
    expect(page.locator(".user")).to_contain_text("eve")
    assert guarded.http.delete(f"/v1/keys/{key['id']}", headers=bearer(ADMIN_KEY)).status_code == 200
    page.get_by_role("link", name="Devices").click()
    expect(page.get_by_label("API key")).to_be_visible()
