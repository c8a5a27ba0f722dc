"""From rows to decisions over HTTP: what is answered, and what is said where nothing can be."""

from __future__ import annotations

import json
import threading
from typing import Any

import httpx
import pytest

from effillm_server.analysis.recommend import AIMS
from effillm_server.api import insight_rows
from effillm_server.api.desk import Desk
from effillm_server.api.insight_views import Aim
from effillm_server.errors import Unavailable
from effillm_server.figures import FIGURES
from tests.support.api import Api, add_device, finish, lease, measured

BATCHES = [1, 2, 4, 8]


def measure(api: Api, count: int, **changes: Any) -> str:
    """Id of a new sweep of one precision over four batch sizes, its first `count` jobs measured."""
    sweep = api.submit(**{"quantization": ["fp32"], "batch_size": BATCHES, "exclude": []} | changes)
    add_device(api.engine)
    for _ in range(count):
        held = lease(api.engine)
        finish(api.engine, held, measured(held))
    return str(sweep["id"])


def get(api: Api, path: str, **params: Any) -> httpx.Response:
    answer = api.http.get(f"/v1{path}", params=params)
    assert answer.status_code == 200, answer.text
    return answer


def refused(answer: httpx.Response, status: int, *parts: str) -> None:
    """A problem document with this status whose detail has all `parts`."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert all(part in answer.json()["detail"] for part in parts), answer.json()["detail"]


def test_the_analysis_has_fits_of_the_measured_rows(api: Api) -> None:
    found = get(api, f"/sweeps/{measure(api, 4)}/analysis").json()
    assert found["summary"]["used"] == 4
    # Every run takes 30 ms, so throughput is proportional to the batch.
    (law,) = [fit for fit in found["fits"] if fit["law"] == "throughput-vs-batch"]
    exponent = law["parameters"]["beta"]["value"]
    assert exponent == pytest.approx(1.0, abs=1e-6)


def test_the_analysis_of_a_sweep_without_results_says_so(api: Api) -> None:
    found = get(api, f"/sweeps/{measure(api, 0)}/analysis").json()
    assert "no valid measured row" in found["summary"]["remark"]
    assert found["fits"] == []


def test_a_filter_narrows_the_analysis(api: Api) -> None:
    found = get(api, f"/sweeps/{measure(api, 4)}/analysis", filter="batch_size=1,2").json()
    assert found["summary"]["rows"] == 2


def test_a_filter_that_nothing_passes_names_what_there_is(api: Api) -> None:
    sweep = measure(api, 1)
    answer = api.http.get(f"/v1/sweeps/{sweep}/analysis", params={"filter": "batch_size=3"})
    refused(answer, 422, "batch_size 3", "batch_size is 1, 2, 4, 8")


@pytest.mark.parametrize(
    ("text", "parts"),
    [("batchsize=1", ["did you mean 'batch_size'"]), ("batch_size=x", ["not a whole number"]), ("batch_size", ["AXIS=VALUE"])],
)  # fmt: skip
def test_a_text_that_is_no_filter_is_refused(api: Api, text: str, parts: list[str]) -> None:
    sweep = measure(api, 0)
    for path in ("analysis", "figures", "report.html", "results"):
        refused(api.http.get(f"/v1/sweeps/{sweep}/{path}", params={"filter": text}), 422, *parts)


def test_results_are_filtered_in_every_format(api: Api) -> None:
    sweep = measure(api, 1)
    assert [row["batch_size"] for row in get(api, f"/sweeps/{sweep}/results", filter="batch_size=2,8").json()] == [2, 8]
    table = get(api, f"/sweeps/{sweep}/results", filter="batch_size=2,8", format="csv").text
    assert len(table.splitlines()) == 3


def test_the_list_of_figures_says_which_can_be_drawn_and_what_the_others_need(api: Api) -> None:
    sweep = measure(api, 4)
    found = {entry["name"]: entry for entry in get(api, f"/sweeps/{sweep}/figures").json()["items"]}
    assert list(found) == list(FIGURES)
    assert found["throughput-vs-batch"]["can_be_drawn"]
    assert found["throughput-vs-batch"]["needs"] is None
    assert not found["throughput-vs-size"]["can_be_drawn"]
    assert "at least two models" in found["throughput-vs-size"]["needs"]


@pytest.mark.parametrize(
    ("form", "media", "start"),
    [("json", "application/json", b"{"), ("svg", "image/svg+xml", b"<svg"), ("png", "image/png", b"\x89PNG"),
     ("pdf", "application/pdf", b"%PDF")],
)  # fmt: skip
def test_a_figure_comes_in_every_format(api: Api, form: str, media: str, start: bytes) -> None:
    answer = get(api, f"/sweeps/{measure(api, 4)}/figures/throughput-vs-batch.{form}", theme="dark", series="model")
    assert answer.headers["content-type"].partition(";")[0] == media
    assert answer.content.startswith(start)


def test_a_figure_without_enough_rows_says_what_it_needs_in_its_frame(api: Api) -> None:
    sweep = measure(api, 1)
    assert "two batch sizes" in get(api, f"/sweeps/{sweep}/figures/throughput-vs-batch.svg").text
    answer = api.http.get(f"/v1/sweeps/{sweep}/figures/throughput-vs-batch.svg", params={"strict": True})
    refused(answer, 422, "not enough data for figure 'throughput-vs-batch'", "two batch sizes", "found 1")


def test_a_figure_that_does_not_exist_suggests_the_nearest(api: Api) -> None:
    sweep = measure(api, 0)
    refused(
        api.http.get(f"/v1/sweeps/{sweep}/figures/throughput-vs-bach.svg"), 404, "did you mean 'throughput-vs-batch'"
    )
    refused(api.http.get(f"/v1/sweeps/{sweep}/figures/throughput-vs-batch.gif"), 422, "'gif'", "svg", "png", "pdf")
    wrong = {"series": "colour"}
    refused(
        api.http.get(f"/v1/sweeps/{sweep}/figures/throughput-vs-batch.svg", params=wrong), 422, "colour", "hardware"
    )


def test_the_report_is_one_page_without_scripts_unless_asked_for(api: Api) -> None:
    sweep = measure(api, 4)
    plain = get(api, f"/sweeps/{sweep}/report.html")
    assert "<script" not in plain.text
    assert "<svg" in plain.text
    assert "script" not in plain.headers["content-security-policy"]
    live = get(api, f"/sweeps/{sweep}/report.html", interactive=True)
    assert "vegaEmbed(" in live.text
    assert "sandbox allow-scripts" in live.headers["content-security-policy"]
    assert "allow-same-origin" not in live.headers["content-security-policy"]


def test_two_sweeps_are_compared_cell_by_cell(api: Api) -> None:
    first, second = measure(api, 4), measure(api, 4)
    found = get(api, "/compare", a=first, b=second, fail_if="slower:3%").json()
    assert len(found["cells"]) == 4
    assert [cell["ratio"] for cell in found["cells"]] == pytest.approx([1.0] * 4)
    assert found["tripped"] == []
    assert found["a"]["sweep"] == first


def test_two_filters_of_one_sweep_are_compared_and_trip_a_condition(api: Api) -> None:
    sweep = measure(api, 4)
    found = get(api, "/compare", a=f"{sweep}:batch_size=8", b=f"{sweep}:batch_size=1", fail_if="slower:3%").json()
    assert found["across"] == {"batch_size": [[8], [1]]}
    (cell,) = found["cells"]
    assert cell["verdict"] == "slower"
    assert [cell["jobs_b"] for cell in found["tripped"]] == [cell["jobs_b"]]


def test_a_noise_floor_that_is_known_replaces_the_assumed_one(api: Api) -> None:
    sweep = measure(api, 4)
    found = get(api, "/compare", a=sweep, b=measure(api, 4), noise_floor=0.01).json()
    assert "1.0% sd of A/A ratios, as given" in found["remarks"][1]
    assert get(api, f"/sweeps/{sweep}/analysis", noise_floor=0.01).json()["noise_floor"]["sd_of_ratio"] == 0.01
    assert "as given" in get(api, f"/sweeps/{sweep}/report.html", noise_floor=0.01).text
    refused(api.http.get("/v1/compare", params={"a": sweep, "b": sweep, "noise_floor": 2}), 422, "noise_floor")


def test_what_cannot_be_compared_is_told(api: Api) -> None:
    sweep, empty = measure(api, 4), measure(api, 0)

    def compared(**params: Any) -> httpx.Response:
        return api.http.get("/v1/compare", params=params)

    refused(compared(a=sweep, b=sweep), 422, "the same 4 results")
    refused(compared(a=sweep, b=empty), 422, "B has no valid measured row")
    refused(compared(a=f"{sweep}:batch_size=1", b=f"{sweep}:batch=1"), 422, "no axis 'batch'")
    refused(compared(a=sweep, b="nowhere"), 404, "no sweep has the id 'nowhere'")
    refused(compared(a=sweep, b="../etc"), 422, "no side of a comparison")
    refused(compared(a=sweep, b=empty, metric="speed"), 422, "no metric 'speed'")
    sides = {"a": f"{sweep}:batch_size=8", "b": f"{sweep}:batch_size=1"}
    refused(compared(**sides, fail_if="worse:3%"), 422, "'worse:3%' is not a condition")
    refused(compared(**sides, metric="memory_bytes", fail_if="slower:3%"), 422, "memory_bytes")


def test_the_best_configuration_is_recommended_with_its_evidence(api: Api) -> None:
    wanted = {"sweep": measure(api, 4), "aim": "throughput", "max_ttft": "200ms"}
    found = api.http.post("/v1/recommendations", json=wanted).json()
    assert found["recommended"]["batch_size"] == 8
    assert found["rests_on"] == found["recommended"]["jobs"]


def test_no_configuration_is_recommended_that_breaks_a_limit(api: Api) -> None:
    wanted = {"sweep": measure(api, 4), "aim": "throughput", "max_ttft": "1ms", "filters": ["batch_size=1,2"]}
    found = api.http.post("/v1/recommendations", json=wanted).json()
    assert found["recommended"] is None
    assert "the best there is has 10 ms" in found["sentence"]


@pytest.mark.parametrize(
    ("changes", "parts"),
    [({"aim": "speed"}, ["throughput", "latency"]), ({"max_memory": "16 parsecs"}, ["not a size", "GB"]),
     ({"max_memory": "1e999GB"}, ["too large"]), ({"max_ttft": 0}, ["greater than 0"]), ({"colour": "red"}, ["colour"]),
     ({"aim": "energy"}, ["no row has a measured energy"]), ({"filters": ["x=1"]}, ["no axis 'x'"])],
)  # fmt: skip
def test_a_wish_that_cannot_be_read_or_met_is_refused(api: Api, changes: dict[str, Any], parts: list[str]) -> None:
    wanted = {"sweep": measure(api, 1)} | changes
    refused(api.http.post("/v1/recommendations", json=wanted), 422, *parts)


@pytest.mark.parametrize("body", [b"H\xff", b"{", b"[]", b""])
def test_a_body_that_is_no_wish_is_refused(api: Api, body: bytes) -> None:
    answer = api.http.post("/v1/recommendations", content=body, headers={"Content-Type": "application/json"})
    refused(answer, 422)


def test_nothing_is_recommended_from_nothing(api: Api) -> None:
    refused(api.http.post("/v1/recommendations", json={"sweep": measure(api, 0)}), 422, "no valid measured row")


def test_every_aim_can_be_asked_for() -> None:
    assert [str(aim) for aim in Aim] == list(AIMS)


def test_rows_measured_since_are_seen(api: Api) -> None:
    sweep = measure(api, 1)
    assert get(api, f"/sweeps/{sweep}/analysis").json()["summary"]["used"] == 1
    held = lease(api.engine)
    finish(api.engine, held, measured(held))
    assert get(api, f"/sweeps/{sweep}/analysis").json()["summary"]["used"] == 2


def test_a_sweep_too_large_to_analyse_is_analysed_in_parts(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(insight_rows, "MAX_ROWS", 3)
    sweep = measure(api, 4)
    refused(api.http.get(f"/v1/sweeps/{sweep}/analysis"), 422, "4 jobs", "narrow it")
    assert get(api, f"/sweeps/{sweep}/analysis", filter="batch_size=1,2").json()["summary"]["used"] == 2
    refused(api.http.get(f"/v1/sweeps/{sweep}/analysis", params={"filter": "batch_size=3"}), 422, "batch_size 3")


def test_a_desk_with_a_full_line_turns_away() -> None:
    desk = Desk(in_line=0)
    with desk.turn(), pytest.raises(Unavailable, match="as many analyses"), desk.turn():
        pass
    with desk.turn():
        pass


def test_those_at_the_desk_come_one_after_the_other() -> None:
    desk = Desk(in_line=1)
    order: list[str] = []
    inside = threading.Event()

    def second() -> None:
        inside.wait()
        with desk.turn():
            order.append("second")

    thread = threading.Thread(target=second)
    thread.start()
    with desk.turn():
        inside.set()
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


def test_the_desk_keeps_the_rows_of_the_last_sweeps_only() -> None:
    desk = Desk(kept_rows=3)
    reads: list[str] = []

    def rows(sweep: str, version: int) -> None:
        desk.rows(sweep, version, lambda: reads.append(sweep) or [{}, {}])  # type: ignore[func-returns-value]

    rows("a", 1)
    rows("a", 1)
    assert reads == ["a"]
    rows("a", 2)
    assert reads == ["a", "a"]
    rows("b", 1)
    rows("a", 2)
    assert reads == ["a", "a", "b", "a"]


def test_numbers_that_json_cannot_tell_are_null() -> None:
    from effillm_server.api.insight import _json

    assert json.loads(_json({"x": [float("nan"), float("inf"), 1.5], "y": (1, None, "text", True)})) == {
        "x": [None, None, 1.5], "y": [1, None, "text", True],
    }  # fmt: skip
