"""Submitting from the page: preview first, what was typed kept, problems at their fields, nothing stored by accident."""

from __future__ import annotations

import re
from typing import Any

import httpx
import pytest

from effillm_server.web import forms
from tests.server.web.conftest import Lab
from tests.support.pages import Markup

HTML = {"Accept": "text/html"}
TYPED: dict[str, Any] = forms.DEFAULTS | {
    "mode": ["form"], "name": ["by form"], "hardware": ["t4"], "engine": ["simulated"], "sequence_length": ["128, 2048"],
    "batch_size": ["1, 2"], "generate_tokens": ["8"],
}  # fmt: skip
TEXT = "name: by yaml\nmodels: [facebook/opt-125m]\nhardware: [t4]\nquantization: [fp16]\nengine: simulated\n"


def post(lab: Lab, **fields: Any) -> httpx.Response:
    return lab.api.http.post("/sweeps/new", data=fields, headers=HTML)


def hidden(page: str) -> dict[str, str]:
    return {at["name"]: at["value"] for at in Markup.of(page).all("input", type="hidden")}


def count(lab: Lab) -> int:
    return len(lab.api.http.get("/v1/sweeps", params={"limit": 1000}).json()["items"])


@pytest.mark.parametrize("fields", [TYPED, {"mode": "yaml", "text": TEXT}], ids=["form", "yaml"])
def test_a_sweep_is_previewed_and_then_stored_once(lab: Lab, fields: dict[str, Any]) -> None:
    before = count(lab)
    preview = post(lab, **fields, action="preview")
    assert preview.status_code == 200, preview.text
    text = Markup.of(preview.text).text
    assert "estimated time About" in text
    assert count(lab) == before
    stored = post(lab, **fields | hidden(preview.text) | {"action": "store"})
    assert stored.status_code == 303, stored.text
    again = post(lab, **fields | hidden(preview.text) | {"action": "store"})
    assert again.headers["location"] == stored.headers["location"]
    assert count(lab) == before + 1
    page = lab.page(stored.headers["location"])
    assert str(fields.get("name", ["by yaml"])[0]) in page
    lab.api.http.post(f"/v1{stored.headers['location']}/cancel")


def test_the_preview_says_what_cannot_run_and_why(lab: Lab) -> None:
    text = Markup.of(post(lab, **TYPED).text).text
    assert "Preview: 4 cells" in text
    assert re.search(r"cannot run: beyond the context window 2\b", text)
    assert "2,048 prompt + 8 generated = 2,056 tokens exceed the context window of 2,048" in text


def test_a_class_that_nobody_has_measured_on_gets_no_invented_time(lab: Lab) -> None:
    text = Markup.of(post(lab, **TYPED | {"hardware": ["a100"]}).text).text
    assert "Cannot be told yet: nothing has been measured on a100 here" in text
    assert "No device of class a100 is in the lab" in text


def test_what_was_changed_after_the_preview_is_previewed_again(lab: Lab) -> None:
    before = count(lab)
    seen = hidden(post(lab, **TYPED).text)
    changed = post(lab, **TYPED | seen | {"batch_size": ["1, 2, 4"], "action": "store"})
    assert changed.status_code == 200
    assert "nothing is stored yet" in changed.text
    assert "Preview: 6 cells" in Markup.of(changed.text).text
    assert count(lab) == before


def test_a_problem_stands_at_its_field_and_what_was_typed_is_kept(lab: Lab) -> None:
    answer = post(lab, **TYPED | {"batch_size": ["1, many"], "name": ["<i>mine</i>"], "quantization": ["int8"]})
    assert answer.status_code == 422
    markup = Markup.of(answer.text)
    (field,) = markup.all("input", id="batch_size")
    assert (field["value"], field["aria-invalid"], field["aria-describedby"]) == ("1, many", "true", "batch_size-error")
    assert markup.all("span", id="batch_size-error") != []
    assert "expected a whole number, found 'many'" in markup.text
    assert markup.all("input", name="name", value="<i>mine</i>") != []
    assert "<i>mine" not in answer.text
    assert [at["value"] for at in markup.all("input", name="quantization") if "checked" in at] == ["int8"]
    assert "name-error" not in answer.text


def test_a_name_that_only_the_server_can_check_is_told_at_its_field_too(lab: Lab) -> None:
    markup = Markup.of(post(lab, **TYPED | {"hardware": ["t4", "abacus"]}).text)
    assert markup.all("span", id="hardware-error") != []
    assert "'abacus' is not a hardware class" in markup.text


@pytest.mark.parametrize("text", ["", "name: [", "- 1", "name: x\nmodels: [a]\nhardwear: [cpu]", "&a [*a]"])
def test_yaml_that_cannot_be_accepted_is_kept_with_the_reason(lab: Lab, text: str) -> None:
    answer = post(lab, mode="yaml", text=text)
    assert answer.status_code == 422
    assert Markup.of(answer.text).all("div", role="alert") != []
    assert text.splitlines()[-1:] == [] or text.splitlines()[-1].replace("&", "&amp;") in answer.text


def test_what_is_no_form_is_refused(lab: Lab) -> None:
    assert lab.api.http.post("/sweeps/new", json={"name": "x"}, headers=HTML).status_code == 415
    many = "&".join(f"f{n}=1" for n in range(2000))
    content_type = {"Content-Type": "application/x-www-form-urlencoded"}
    assert lab.api.http.post("/sweeps/new", content=many, headers=HTML | content_type).status_code == 422


def test_another_site_cannot_submit(lab: Lab) -> None:
    before = count(lab)
    foreign = {"Origin": "http://evil.example"}
    assert lab.api.http.post("/sweeps/new", data=TYPED, headers=HTML | foreign).status_code == 403
    assert count(lab) == before


def test_a_sweep_like_an_earlier_one_is_filled_in(lab: Lab) -> None:
    markup = Markup.of(lab.page(f"/sweeps/new?like={lab.sweep}"))
    assert markup.all("input", id="batch_size", value="1, 4") != []
    assert [at["value"] for at in markup.all("input", name="engine") if "checked" in at] == ["simulated"]
