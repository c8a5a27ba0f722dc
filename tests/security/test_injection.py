"""Names and messages that would be markup, formulas or SQL in careless hands."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any
from urllib.parse import quote
from xml.etree import ElementTree

import pytest

from effillm_server.api import examples, pages
from effillm_server.contract.outcome import Exit, Fault, FaultKind
from effillm_server.ledger import queue
from tests.support.api import BOOT, Api, add_device, finish, lease, measured, serving
from tests.support.postgres import cloned

MARKUP = "\"'><script>alert(1)</script><img src=x onerror=alert(2)>{{7*7}}${7*7}</title></script><svg onload=alert(3)>"
FORMULA = '=HYPERLINK("http://evil.example","x")'
# Elements and attributes that our own pages have none of.
ACTIVE = ("onerror", "onload", "onclick", "onmouseover", "onfocus")


@pytest.fixture(scope="module")
def hostile(postgres_url: str, template_database: str) -> Iterator[tuple[Api, dict[str, Any]]]:
    """A sweep whose name, messages and log lines are markup, with a measured and a failed job; and a drained device."""
    with cloned(postgres_url, template_database) as url, serving(url) as api:
        sweep = api.submit(name=MARKUP)
        add_device(api.engine)
        held = lease(api.engine)
        finish(api.engine, held, measured(held))
        for start in (MARKUP, FORMULA):
            held = lease(api.engine)
            said = Exit(code=1, log_tail=(MARKUP, FORMULA))
            finish(api.engine, held, Fault(fault=FaultKind.CRASHED, message=start + MARKUP, exit=said))
        with api.engine.begin() as c:
            queue.quarantine(c, held.device_id, BOOT, MARKUP)
        yield api, sweep


class Elements(HTMLParser):
    """What a browser would make of a page: its elements with their attributes, and the text of its scripts."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.found and self.found[-1][0] == "script":
            self.scripts.append(data)


def parsed(page: str) -> Elements:
    elements = Elements()
    elements.feed(page)
    return elements


def pages_of(api: Api, sweep: str) -> list[str]:
    jobs = [job["id"] for job in api.jobs(sweep)]
    return [
        f"/v1/sweeps/{sweep}/report.html", f"/v1/sweeps/{sweep}/report.html?interactive=true", "/sweeps", f"/sweeps/{sweep}",
        f"/sweeps/{sweep}/findings", f"/sweeps/{sweep}/figures", f"/sweeps/{sweep}/frontier", f"/sweeps/{sweep}/jobs",
        f"/sweeps/{sweep}/definition", *(f"/jobs/{job}" for job in jobs), "/devices", f"/compare?a={sweep}&b={sweep}",
        f"/recommend?sweep={sweep}",
    ]  # fmt: skip


def test_no_page_or_report_has_markup_that_came_in_by_a_name(hostile: tuple[Api, dict[str, Any]]) -> None:
    api, sweep = hostile
    shown = 0
    for path in pages_of(api, sweep["id"]):
        answer = api.http.get(path, headers={"Accept": "text/html"})
        assert answer.status_code == 200, (path, answer.text[:300])
        elements = parsed(answer.text)
        for tag, attributes in elements.found:
            assert not set(attributes) & set(ACTIVE), (path, tag, attributes)
            assert (tag, attributes.get("src")) != ("img", "x"), path
        for script in elements.scripts:
            if "alert(1)" in script:
                assert "<script>" not in script and "</script" not in script, path
        assert "<script>alert(1)" not in answer.text and "<img src=x" not in answer.text, path
        if "alert(1)" in answer.text:
            assert "{{7*7}}" in answer.text, path
        shown += "alert(1)" in answer.text
    assert shown >= 5  # the names are there, as text


def test_figures_carry_names_as_text(hostile: tuple[Api, dict[str, Any]]) -> None:
    api, sweep = hostile
    entries = api.http.get(f"/v1/sweeps/{sweep['id']}/figures").json()["items"]
    drawn = [entry["name"] for entry in entries if entry["can_be_drawn"]][:2]
    framed = [entry["name"] for entry in entries if not entry["can_be_drawn"]][:1]
    for figure in drawn + framed:
        answer = api.http.get(f"/v1/sweeps/{sweep['id']}/figures/{figure}.svg")
        assert answer.status_code == 200, figure
        root = ElementTree.fromstring(answer.text)
        tags = {element.tag.rpartition("}")[2] for element in root.iter()}
        assert not tags & {"script", "foreignObject", "image", "a", "use"}, (figure, tags)
        assert not {key for element in root.iter() for key in element.attrib if key.startswith("on")}
        assert "script-src" not in answer.headers["content-security-policy"]
    assert drawn + framed


def test_json_stays_json_and_is_never_taken_for_a_page(hostile: tuple[Api, dict[str, Any]]) -> None:
    api, sweep = hostile
    answer = api.http.get(f"/v1/sweeps/{sweep['id']}", headers={"Accept": "text/html"})
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.json()["name"] == MARKUP
    wrong = api.http.get(f"/v1/sweeps/{MARKUP[2:60]}", headers={"Accept": "text/html"})
    assert wrong.headers["content-type"] == "application/problem+json"


def test_cells_that_begin_like_a_formula_are_text(hostile: tuple[Api, dict[str, Any]]) -> None:
    api, sweep = hostile
    text = api.http.get(f"/v1/sweeps/{sweep['id']}/results?format=csv").text
    rows = list(csv.reader(io.StringIO(text)))
    cells = [cell for line in rows[1:] for cell in line]
    assert any(cell.startswith("'=HYPERLINK") for cell in cells)
    for cell in cells:
        if cell[:1] in ("=", "+", "@", "\t", "\r") or (cell.startswith("-") and not _is_number(cell)):
            raise AssertionError(f"a spreadsheet would run {cell!r}")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


SQL = [
    "' OR '1'='1", "'; DROP TABLE job; --", "1; SELECT pg_sleep(10)", "\" OR \"\"=\"", "x') UNION SELECT hash::text FROM api_key --",
    "%27%20OR%201=1", "\\'; --", "$$; DROP TABLE sweep; $$", ":sweep", "%(sweep)s", "%s", "{0}", "*", "NULL", "\x00", "\ud7ff",
    "0x1F", "1e309", "-1", "9" * 30, "ʼ OR 1=1", "a" * 5000,
]  # fmt: skip


@pytest.mark.parametrize("text", SQL, ids=range(len(SQL)))
def test_no_text_becomes_sql(hostile: tuple[Api, dict[str, Any]], text: str) -> None:
    """In every filter, cursor, id and name that is looked up: refused or found nothing, never an error of the server."""
    api, sweep = hostile
    whole = api.http.get(f"/v1/sweeps/{sweep['id']}/results").text
    base = f"/v1/sweeps/{sweep['id']}"
    cursor = pages.encode("sweeps", text[:100])
    queries: list[tuple[str, dict[str, str]]] = [
        (f"{base}/jobs", {"state": text}), (f"{base}/jobs", {"after": text}), (f"{base}/jobs", {"limit": text}),
        (f"{base}/results", {"filter": f"model={text}"}), (f"{base}/results", {"filter": f"{text}=1"}),
        (f"{base}/results", {"filter": f"batch_size={text}"}), (f"{base}/results", {"format": text}),
        (f"{base}/results", {"dialect": text}), (f"{base}/analysis", {"filter": f"quantization={text}"}),
        ("/v1/sweeps", {"after": text}), ("/v1/sweeps", {"after": cursor}), ("/v1/sweeps", {"limit": text}),
        ("/v1/audit", {"actor": text}), ("/v1/audit", {"action": text}), ("/v1/audit", {"subject": text}),
        ("/v1/audit", {"after": text}), ("/v1/keys", {"after": text}),
        ("/v1/events", {"sweep": text, "follow": "false"}), ("/v1/events", {"after": text, "follow": "false"}),
        ("/v1/compare", {"a": text, "b": sweep["id"]}), ("/v1/compare", {"a": f"{sweep['id']}:model={text}", "b": sweep["id"]}),
        ("/v1/compare", {"a": sweep["id"], "b": sweep["id"], "metric": text}),
        ("/v1/compare", {"a": sweep["id"], "b": sweep["id"], "across": text}),
    ]  # fmt: skip
    for path, query in queries:
        answer = api.http.get(path, params=query)
        assert answer.status_code in (200, 404, 422), (path, query, answer.status_code, answer.text[:200])
        assert (
            not any(word in answer.text for word in ("psycopg2", "SELECT ", "syntax error", "Traceback"))
            or text in answer.text
        )
    for path in ("/v1/sweeps/{}", "/v1/jobs/{}", "/v1/sweeps/{}/results", "/v1/sweeps/{}/jobs"):
        answer = api.http.get(path.format(quote(text[:500], safe="")))
        assert answer.status_code in (404, 422), (path, answer.status_code)
    headers = {"Last-Event-ID": "1 OR 1=1"}
    assert api.http.get("/v1/events?follow=false", headers=headers).status_code == 422
    assert api.http.get(f"/v1/sweeps/{sweep['id']}/results").text == whole


def test_an_idempotency_key_of_sql_is_a_key_like_any_other(hostile: tuple[Api, dict[str, Any]]) -> None:
    api, _ = hostile
    named = {"Idempotency-Key": "';DROP/**/TABLE/**/job;--"}
    body = examples.DEFINITION | {"name": json.dumps(SQL[1])}
    first = api.http.post("/v1/sweeps", json=body, headers=named)
    assert first.status_code == 201
    assert api.http.post("/v1/sweeps", json=body, headers=named).json()["id"] == first.json()["id"]
    assert api.http.get(f"/v1/sweeps/{first.json()['id']}").json()["name"] == json.dumps(SQL[1])
