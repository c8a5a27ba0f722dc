"""Comparing on the page."""

from __future__ import annotations

import pytest

from tests.server.web.conftest import Lab
from tests.support.pages import Markup


def test_two_filters_of_a_sweep_are_compared_cell_by_cell_with_the_evidence(lab: Lab) -> None:
    path = f"/compare?a={lab.sweep}&b={lab.sweep}&a_filter=quantization=fp16&b_filter=quantization=int8&margin=5"
    markup = Markup.of(lab.page(path))
    answer = lab.api.http.get(
        "/v1/compare",
        params={"a": f"{lab.sweep}:quantization=fp16", "b": f"{lab.sweep}:quantization=int8", "margin": 0.05},
    ).json()
    for cell in answer["cells"]:
        assert f"{cell['change']:+.1%}" in markup.text
    linked = {at["href"] for at in markup.all("a") if at["href"].startswith("/jobs/")}
    assert linked == {f"/jobs/{job}" for cell in answer["cells"] for job in cell["jobs_a"] + cell["jobs_b"]}


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("a={sweep}&b={sweep}", "are the same"),
        ("a={sweep}&b=none", "no sweep has the id"),
        ("a={sweep}&b={sweep}&a_filter=colour=red", "no axis 'colour'"),
        ("a={sweep}&b={sweep}&margin=much", "not a number of percent"),
        ("a={sweep}&b={sweep}&metric=beauty&a_filter=batch_size=1&b_filter=batch_size=4", "no metric 'beauty'"),
    ],
)
def test_what_cannot_be_compared_is_said_and_the_form_kept(lab: Lab, query: str, said: str) -> None:
    page = lab.page(f"/compare?{query.format(sweep=lab.sweep)}")
    assert said in Markup.of(page).text
    assert f'value="{lab.sweep}" selected' in page
