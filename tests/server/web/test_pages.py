"""Every page: it renders in an empty lab and in one with results, runs under its policy, and stays small."""

from __future__ import annotations

import pytest

from effillm_server.api import examples
from effillm_server.web.assets import assets
from effillm_server.web.templating import POLICY
from tests.server.web.conftest import Lab
from tests.support.api import Api
from tests.support.pages import HOSTILE, Markup

ANYWHERE = ("/sweeps", "/sweeps/new", "/sweeps/new?mode=yaml", "/devices", "/compare", "/recommend", "/login", "/keys")
OF_A_SWEEP = (
    "/sweeps/{sweep}", "/sweeps/{sweep}?colour=state", "/sweeps/{sweep}?colour=memory", "/sweeps/{sweep}/findings",
    "/sweeps/{sweep}/figures", "/sweeps/{sweep}/frontier", "/sweeps/{sweep}/jobs", "/sweeps/{sweep}/jobs?state=infeasible",
    "/sweeps/{sweep}/definition", "/sweeps/new?like={sweep}", "/jobs/{measured}", "/jobs/{infeasible}",
    "/recommend?sweep={sweep}&aim=latency&memory_mb=5000",
    "/compare?a={sweep}&b={sweep}&a_filter=quantization=fp16&b_filter=quantization=int8",
)  # fmt: skip
LARGEST_BYTES = 300_000
HTML = {"Accept": "text/html,application/xhtml+xml"}


def paths(lab: Lab) -> list[str]:
    return [
        path.format(sweep=lab.sweep, measured=lab.measured, infeasible=lab.infeasible)
        for path in (*ANYWHERE, *OF_A_SWEEP)
    ]


def is_a_sound_page(page: str) -> None:
    markup = Markup.of(page)
    assert markup.inline == []
    assert markup.outside == []
    assert [at["lang"] for at in markup.all("html")] == ["en"]
    assert len(markup.all("main")) == len(markup.all("h1")) == 1
    ids = [at["id"] for _, at in markup.elements if "id" in at]
    assert sorted(ids) == sorted(set(ids))
    described = {at["for"] for at in markup.all("label") if "for" in at}
    assert described <= set(ids)


def test_the_front_door_leads_to_the_sweeps(empty: Api) -> None:
    assert empty.http.get("/", follow_redirects=True).url.path == "/sweeps"


@pytest.mark.parametrize("path", ANYWHERE)
def test_a_page_of_an_empty_lab_says_what_there_could_be(empty: Api, path: str) -> None:
    answer = empty.http.get(path, headers=HTML)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-security-policy"] == POLICY
    is_a_sound_page(answer.text)


def test_every_page_of_a_lab_with_results_is_sound_and_escapes_what_others_wrote(lab: Lab) -> None:
    named = 0
    for path in paths(lab):
        answer = lab.api.http.get(path, headers=HTML)
        assert answer.status_code == 200, f"{path}: {answer.text}"
        assert answer.headers["content-security-policy"] == POLICY
        is_a_sound_page(answer.text)
        assert "<script>alert" not in answer.text, path
        named += HOSTILE in Markup.of(answer.text).text
    assert named >= 10


def test_the_policy_allows_nothing_inline_and_nobody_else() -> None:
    rules = dict(rule.split(" ", 1) for rule in POLICY.split("; "))
    assert rules["default-src"] == "'self'"
    assert "unsafe" not in POLICY
    assert "http" not in POLICY


def test_a_first_visit_of_any_page_loads_less_than_300_kb_beside_the_chart_library(lab: Lab) -> None:
    shape = {
        "batch_size": [1, 2, 3, 4, 5],
        "sequence_length": list(range(100, 140)),
        "quantization": ["fp32", "fp16", "bf16", "int8", "int4"],
    }
    large = lab.api.submit(**examples.DEFINITION | {"name": "1,000 cells"} | shape)
    visited = [*paths(lab), f"/sweeps/{large['id']}", f"/sweeps/{large['id']}/jobs"]
    assert len(Markup.of(lab.page(f"/sweeps/{large['id']}")).all("td")) == 1000
    for path in visited:
        page = lab.page(path)
        markup = Markup.of(page)
        loaded = [at["src"] for at in markup.all("script")] + [at["href"] for at in markup.all("link")]
        own = [address for address in loaded if "/vega" not in address]
        assert len(own) >= 4
        size = len(page.encode()) + sum(
            len(assets()[address.split("?")[0].removeprefix("/static/")].content) for address in own
        )
        assert size < LARGEST_BYTES, path
    lab.api.http.post(f"/v1/sweeps/{large['id']}/cancel")


def test_the_chart_library_is_loaded_only_where_a_chart_is(lab: Lab) -> None:
    with_charts = [path for path in paths(lab) if "vega" in lab.page(path)]
    assert with_charts == [f"/sweeps/{lab.sweep}/figures"]


def test_what_does_not_exist_is_told_as_a_page_to_a_browser_and_as_a_problem_to_a_program(lab: Lab) -> None:
    for path in ("/sweeps/none", "/jobs/999999", "/nowhere", "/sweeps/new?like=none"):
        page = lab.api.http.get(path, headers=HTML)
        assert page.status_code == 404, path
        assert page.headers["content-type"].startswith("text/html")
        is_a_sound_page(page.text)
    program = lab.api.http.get("/v1/sweeps/none", headers=HTML)
    assert program.headers["content-type"].startswith("application/problem+json")
    assert lab.api.http.get("/sweeps/none").headers["content-type"].startswith("application/problem+json")


def test_pages_stay_out_of_the_description_of_the_interface(empty: Api) -> None:
    described = empty.http.get("/openapi.json").json()["paths"]
    assert [path for path in described if not path.startswith(("/v1/", "/healthz", "/readyz", "/metrics"))] == []
