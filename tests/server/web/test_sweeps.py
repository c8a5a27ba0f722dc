"""Pages of sweeps: what they show of a running and a finished one, and what their buttons do."""

from __future__ import annotations

import pytest

from effillm_server.api import examples
from effillm_server.figures import FIGURES
from effillm_server.web import sweeps
from tests.server.web.conftest import Lab
from tests.support.pages import HOSTILE, Markup

WAITING = examples.DEFINITION | {"name": "waits", "hardware": ["a10"]}


def test_the_list_shows_how_far_each_sweep_is(lab: Lab) -> None:
    text = Markup.of(lab.page("/sweeps")).text
    assert f"{HOSTILE} finished 8 of 8" in text
    assert "local admin" in text


def test_the_list_goes_on_where_a_page_ends(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeps, "ON_A_PAGE", 2)
    made = [lab.api.submit(**WAITING)["id"] for _ in range(3)]
    first = Markup.of(lab.page("/sweeps"))
    (older,) = first.all("a", rel="next")
    shown = [{at["href"] for at in page.all("a")} for page in (first, Markup.of(lab.page(older["href"])))]
    assert not {f"/sweeps/{sweep}" for sweep in made} <= shown[0]
    assert {f"/sweeps/{sweep}" for sweep in made} <= shown[0] | shown[1]
    for sweep in made:
        lab.api.http.post(f"/v1/sweeps/{sweep}/cancel")


def test_the_matrix_has_a_link_for_every_cell_and_its_number(lab: Lab) -> None:
    markup = Markup.of(lab.page(f"/sweeps/{lab.sweep}"))
    cells = {at["href"]: at["title"] for at in markup.all("a") if at["href"].startswith("/jobs/")}
    jobs = lab.api.jobs(lab.sweep)
    assert cells.keys() == {f"/jobs/{job['id']}" for job in jobs}
    for job in jobs:
        assert ("tokens/s" in cells[f"/jobs/{job['id']}"]) == (job["state"] == "measured")
    assert "SIMULATED" in markup.text


def test_the_matrix_says_the_throughput_that_the_rows_have(lab: Lab) -> None:
    row = next(r for r in lab.api.http.get(f"/v1/sweeps/{lab.sweep}/results").json() if r["job"] == lab.measured)
    (cell,) = Markup.of(lab.page(f"/sweeps/{lab.sweep}")).all("a", id=f"c{lab.measured}")
    shown = float(cell["title"].split(": ")[1].split(" ")[0].replace(",", "").replace("k", "e3"))
    assert abs(shown / row["throughput_tok_s_mean"] - 1) < 0.01


def test_a_page_follows_the_stream_from_before_it_was_read(lab: Lab) -> None:
    (live,) = Markup.of(lab.page(f"/sweeps/{lab.sweep}")).all("div", id="live")
    assert live["data-stream"] == f"/v1/events?sweep={lab.sweep}"
    assert int(live["data-after"]) > 0
    for kind in ("job_measured", "job_infeasible", "jobs_implied", "sweep_finished", "device_lost"):
        assert kind in live["data-kinds"].split()


def test_what_is_swapped_in_when_the_page_looks_again_is_there(lab: Lab) -> None:
    for path in (
        f"/sweeps/{lab.sweep}",
        f"/sweeps/{lab.sweep}/jobs",
        f"/sweeps/{lab.sweep}/findings",
        "/sweeps",
        "/devices",
    ):
        markup = Markup.of(lab.page(path))
        ids = {at["id"] for _, at in markup.elements if "id" in at}
        (live,) = markup.all("div", id="live")
        parts = {part.removeprefix("#") for part in live["hx-select-oob"].split(",")}
        assert parts
        assert parts <= ids, path


def test_a_waiting_sweep_says_why_and_is_cancelled_and_retried_by_its_buttons(lab: Lab) -> None:
    sweep = lab.api.submit(**WAITING)["id"]
    page = lab.page(f"/sweeps/{sweep}")
    assert "no device of class a10" in Markup.of(page).text
    assert f'action="/sweeps/{sweep}/cancel"' in page
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    assert lab.api.http.post(f"/sweeps/{sweep}/cancel", headers=form).headers["location"] == f"/sweeps/{sweep}"
    page = lab.page(f"/sweeps/{sweep}")
    assert "Retry 4 failed or cancelled" in page
    assert lab.api.http.post(f"/sweeps/{sweep}/retry", headers=form).status_code == 303
    assert lab.api.http.get(f"/v1/sweeps/{sweep}").json()["counts"]["pending"] == 4
    lab.api.http.post(f"/v1/sweeps/{sweep}/cancel")


def test_a_finished_sweep_is_neither_cancelled_nor_retried(lab: Lab) -> None:
    page = lab.page(f"/sweeps/{lab.sweep}")
    assert "/cancel" not in page
    assert "/retry" not in page


def test_every_download_of_the_page_is_served(lab: Lab) -> None:
    links = [at["href"] for at in Markup.of(lab.page(f"/sweeps/{lab.sweep}")).all("a") if at["href"].startswith("/v1/")]
    *rows, report = links
    assert [link.rpartition("=")[2] for link in rows] == ["csv", "json", "parquet"]
    for link in rows:
        assert "attachment" in lab.api.http.get(link).headers["content-disposition"], link
    assert report == f"/v1/sweeps/{lab.sweep}/report.html"


def test_findings_name_the_cells_they_rest_on(lab: Lab) -> None:
    markup = Markup.of(lab.page(f"/sweeps/{lab.sweep}/findings"))
    assert "Highest throughput on t4" in markup.text
    jobs = {f"/jobs/{job['id']}" for job in lab.api.jobs(lab.sweep)}
    assert {at["href"] for at in markup.all("a") if at["href"].startswith("/jobs/")} <= jobs


def test_findings_of_a_sweep_without_results_say_so(lab: Lab) -> None:
    sweep = lab.api.submit(**WAITING)["id"]
    assert "no valid measured row" in lab.page(f"/sweeps/{sweep}/findings")
    lab.api.http.post(f"/v1/sweeps/{sweep}/cancel")


def test_the_figures_of_the_paper_are_all_there_without_scripts_too(lab: Lab) -> None:
    markup = Markup.of(lab.page(f"/sweeps/{lab.sweep}/figures?filter=quantization=int8"))
    names = [at["id"] for at in markup.all("figure")]
    assert names == list(FIGURES)
    pictures = markup.all("img", loading="lazy")
    assert len(pictures) == len(FIGURES)
    assert all(at["src"].endswith("&filter=quantization=int8") for at in pictures)
    assert lab.api.http.get(pictures[0]["src"]).headers["content-type"] == "image/svg+xml"


def test_jobs_are_listed_by_state(lab: Lab) -> None:
    markup = Markup.of(lab.page(f"/sweeps/{lab.sweep}/jobs?state=infeasible"))
    rows = [at for at in markup.all("a") if at["href"].startswith("/jobs/")]
    assert len(rows) == lab.api.http.get(f"/v1/sweeps/{lab.sweep}").json()["counts"]["infeasible"]
    assert "beyond the context window" in markup.text
