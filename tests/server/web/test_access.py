"""Who sees which page where keys are asked for: nobody without one, each scope what it opens, nobody another's private sweep."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import httpx
import pytest
from fastapi.routing import APIRoute

from effillm_server.web import routes
from tests.server.web.conftest import served
from tests.support.api import Api
from tests.support.keys import ADMIN_KEY, bearer, make_key
from tests.support.pages import Markup

HTML = {"Accept": "text/html"}
FORM = {"Content-Type": "application/x-www-form-urlencoded"}
OPEN = {("GET", "/static/{name:path}"), ("GET", "/login"), ("POST", "/login")}
EVERY = sorted(
    {
        (method, route.path)
        for part in routes.PARTS
        for route in part.router.routes
        if isinstance(route, APIRoute)
        for method in route.methods
    }
    - OPEN
)
PRIVATE = {
    "name": "of ada alone", "models": [{"id": "facebook/opt-125m", "weights": "synthetic"}], "hardware": ["cpu"],
    "quantization": ["fp32"], "visibility": "private",
}  # fmt: skip


@pytest.fixture(scope="module")
def guarded(postgres_url: str, template_database: str, no_model_hub: None) -> Iterator[Api]:
    """A server that asks for keys."""
    with served(postgres_url, template_database, require_keys=True, admin_key=ADMIN_KEY) as api:
        yield api


def browser(api: Api, key: str) -> httpx.Client:
    """A browser that has signed in with this key."""
    client = httpx.Client(base_url=api.http.base_url, headers=HTML, trust_env=False, timeout=120)
    assert client.post("/login", data={"key": key}).status_code == 303
    return client


def filled(path: str, sweep: str = "none", job: int = 999_999) -> str:
    return path.format(sweep_id=sweep, job_id=job, device_id="none", key_id=999_999)


def test_there_are_pages_to_guard() -> None:
    assert len(EVERY) >= 20
    assert {"/sweeps/{sweep_id}", "/jobs/{job_id}", "/devices", "/compare", "/recommend"} <= {path for _, path in EVERY}


@pytest.mark.parametrize(("method", "path"), [pair for pair in EVERY if pair[1] != "/"])
def test_without_a_key_every_page_leads_to_the_door_and_no_further(guarded: Api, method: str, path: str) -> None:
    answer = guarded.http.request(method, filled(path), headers=HTML | FORM)
    assert answer.status_code == 303
    assert answer.headers["location"].startswith("/login")
    wrong = guarded.http.request(method, filled(path), headers={**FORM, **bearer("eff_" + "x" * 43)})
    assert wrong.status_code == 401


@pytest.mark.parametrize(("method", "path"), [pair for pair in EVERY if pair[0] == "POST" and pair[1] != "/logout"])
def test_a_reader_changes_nothing(guarded: Api, method: str, path: str) -> None:
    with closing(browser(guarded, make_key(guarded, "ben", "read")["key"])) as reader:
        page = Markup.of(reader.get("/sweeps").text)
        (token,) = {at["value"] for at in page.all("input", name="csrf")}
        answer = reader.request(method, filled(path), data={"csrf": token})
        assert answer.status_code == 403
        assert "this needs a key with the scope" in Markup.of(answer.text).text


def test_a_change_needs_the_token_of_its_own_session(guarded: Api) -> None:
    with (
        closing(browser(guarded, make_key(guarded, "ada", "submit")["key"])) as mine,
        closing(browser(guarded, make_key(guarded, "eve", "submit")["key"])) as hers,
    ):
        (token,) = {at["value"] for at in Markup.of(hers.get("/sweeps").text).all("input", name="csrf")}
        for method, path in EVERY:
            if method == "POST":
                for data in ({}, {"csrf": token}):
                    assert mine.request(method, filled(path), data=data, headers=FORM).status_code == 403, path


def test_a_private_sweep_exists_for_its_owner_and_admins_only(guarded: Api) -> None:
    ada = make_key(guarded, "ada", "submit")["key"]
    made = guarded.http.post("/v1/sweeps", json=PRIVATE, headers=bearer(ada))
    sweep = made.json()["id"]
    (job,) = guarded.http.get(f"/v1/sweeps/{sweep}/jobs", headers=bearer(ada)).json()["items"]
    pages = [
        filled(path, sweep, job["id"])
        for method, path in EVERY
        if method == "GET" and "{" in path and "key" not in path
    ]
    pages += [f"/sweeps/new?like={sweep}", f"/recommend?sweep={sweep}"]
    with (
        closing(browser(guarded, ada)) as owner,
        closing(browser(guarded, ADMIN_KEY)) as admin,
        closing(browser(guarded, make_key(guarded, "eve", "submit")["key"])) as other,
    ):
        for page in pages:
            assert (owner.get(page).status_code, admin.get(page).status_code, other.get(page).status_code) == (
                200,
                200,
                404,
            ), page
        assert "of ada alone" in owner.get("/sweeps").text
        for listing in ("/sweeps", "/compare", "/recommend", f"/compare?a={sweep}&b={sweep}"):
            assert "of ada alone" not in other.get(listing).text


def test_buttons_that_would_be_refused_are_not_offered(guarded: Api) -> None:
    lab = PRIVATE | {"visibility": "lab", "name": "of all"}
    sweep = guarded.http.post("/v1/sweeps", json=lab, headers=bearer(ADMIN_KEY)).json()["id"]
    with closing(browser(guarded, make_key(guarded, "eve", "submit")["key"])) as other:
        assert "/cancel" not in other.get(f"/sweeps/{sweep}").text
        assert "/sweeps/new" in other.get("/sweeps").text
