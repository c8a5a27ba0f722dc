"""Keys on the page: made, shown once, revoked; every change on record."""

from __future__ import annotations

import re

from tests.server.web.conftest import Lab
from tests.support.pages import Markup

HTML = {"Accept": "text/html"}


def test_a_key_is_made_shown_once_and_revoked(lab: Lab) -> None:
    made = lab.api.http.post("/keys", data={"owner": "ada", "scope": "submit", "days": "30"}, headers=HTML)
    assert made.status_code == 200
    (key,) = re.findall(r"<code>(eff_[^<]{40,})</code>", made.text)
    listed = lab.page("/keys")
    assert key not in listed
    assert "ada" in Markup.of(listed).text
    bearer = {"Authorization": f"Bearer {key}"}
    assert lab.api.http.get("/v1/session", headers=bearer).json()["owner"] == "ada"
    (revoke, *_) = [at["action"] for at in Markup.of(listed).all("form") if at["action"].endswith("/revoke")]
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    assert lab.api.http.post(revoke, headers=form).headers["location"] == "/keys"
    assert lab.api.http.get("/v1/session", headers=bearer).status_code == 401
    text = Markup.of(lab.page("/keys")).text
    assert re.search(r"revoked (just now|\d+ s ago)", text)
    assert "key.create" in text and "key.revoke" in text


def test_what_is_wrong_with_a_key_is_told_at_its_field_and_nothing_is_made(lab: Lab) -> None:
    before = len(lab.api.http.get("/v1/keys").json()["items"])
    answer = lab.api.http.post("/keys", data={"owner": "no body", "scope": "all", "days": "soon"}, headers=HTML)
    assert answer.status_code == 422
    markup = Markup.of(answer.text)
    assert {at["id"] for at in markup.all("span") if at.get("class") == "error"} == {
        "owner-error",
        "scope-error",
        "days-error",
    }
    assert markup.all("input", id="owner", value="no body") != []
    assert len(lab.api.http.get("/v1/keys").json()["items"]) == before
