"""Recommending on the page: limits in the address, the answer of the REST route, its evidence linked."""

from __future__ import annotations

from effillm_server.web.recommend import _slider
from tests.server.web.conftest import Lab
from tests.support.pages import Markup


def test_the_answer_is_that_of_the_rest_route_and_links_its_evidence(lab: Lab) -> None:
    asked = {"sweep": lab.sweep, "aim": "latency", "max_memory": 9e9}
    answer = lab.api.http.post("/v1/recommendations", json=asked).json()
    markup = Markup.of(lab.page(f"/recommend?sweep={lab.sweep}&aim=latency&memory_mb=9000"))
    assert answer["sentence"] in markup.text
    linked = {at["href"] for at in markup.all("a")}
    assert {f"/jobs/{job}" for job in answer["rests_on"][:12]} <= linked


def test_without_a_choice_the_newest_sweep_with_results_is_taken(lab: Lab) -> None:
    markup = Markup.of(lab.page("/recommend"))
    assert next(at["value"] for at in markup.all("option") if "selected" in at) == lab.sweep


def test_limits_that_nothing_keeps_say_what_the_best_there_is_has(lab: Lab) -> None:
    text = Markup.of(lab.page(f"/recommend?sweep={lab.sweep}&throughput=1e9")).text
    assert "no measured configuration keeps all limits" in text
    assert "the best there is has" in text
    assert "It would change with throughput" in text


def test_a_limit_in_the_address_is_the_sliders_value_and_none_is_its_end(lab: Lab) -> None:
    markup = Markup.of(lab.page(f"/recommend?sweep={lab.sweep}&ttft_ms=3.5"))
    sliders = {at["name"]: at for at in markup.all("input", type="range")}
    assert float(sliders["ttft_ms"]["value"]) == 3.5
    assert sliders["throughput"]["value"] == sliders["throughput"]["data-unlimited"] == sliders["throughput"]["min"]
    assert sliders["memory_mb"]["value"] == sliders["memory_mb"]["data-unlimited"] == sliders["memory_mb"]["max"]


def test_a_slider_covers_its_range_in_round_steps() -> None:
    slider = _slider("a", "A", "s", 13.0, 977.0, {"a": ""})
    assert (slider.low, slider.step) == (10.0, 10.0)
    assert slider.high >= 980.0
    assert not slider.is_limit
    assert _slider("a", "A", "s", 13.0, 977.0, {"a": "5000"}).high == 5000.0
    assert _slider("a", "A", "s", 7.0, 7.0, {"a": "nan"}).is_limit is False


def test_nonsense_in_the_address_limits_nothing(lab: Lab) -> None:
    text = Markup.of(lab.page(f"/recommend?sweep={lab.sweep}&ttft_ms=fast&memory_mb=-1&filter=quantization=int8")).text
    assert "measured configurations surely keep the limits" in text
