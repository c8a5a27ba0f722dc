"""What a person does: submit, watch, look into a cell, compare, decide, sign in and out."""

from __future__ import annotations

import re

import psutil
import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser.conftest import QUICK, SLOW, Lab
from tests.support.browser import Visitor, visiting

pytestmark = pytest.mark.browser
LONG_MS = 60_000


def fill_in(page: Page, name: str) -> None:
    page.get_by_label("Name", exact=True).fill(name)
    page.get_by_label("Models, one a line").fill("facebook/opt-125m")
    for box in page.get_by_role("group", name="Hardware").get_by_role("checkbox").all():
        box.uncheck()
    page.get_by_role("group", name="Hardware").get_by_label("t4").check()
    page.get_by_label("Batch sizes").fill("1, 4")
    page.get_by_label("Sequence lengths").fill("128, 2048")
    page.get_by_label("Tokens to generate").fill("8")
    page.get_by_label("Iterations, least").fill(str(QUICK["iterations"]))
    page.get_by_text("More", exact=True).click()
    page.get_by_role("checkbox", name="transformers").uncheck()
    page.get_by_role("checkbox", name="simulated").check()


def test_a_sweep_is_submitted_by_form_after_its_preview_and_measured(visitor: Visitor) -> None:
    # What a form says with its status, the console repeats.
    visitor.forgiven = ("the server responded with a status of 422",)
    page = visitor.page
    page.get_by_role("link", name="Submit a sweep").click()
    fill_in(page, "from the form")
    page.get_by_label("Batch sizes").fill("1, many")
    page.get_by_role("button", name="Preview").click()
    expect(page.get_by_label("Batch sizes")).to_have_value("1, many")
    expect(page.locator("#batch_size-error")).to_contain_text("expected a whole number")
    page.get_by_label("Batch sizes").fill("1, 4")
    page.get_by_role("button", name="Preview").click()
    expect(page.get_by_role("heading", name="Preview: 4 cells")).to_be_visible()
    expect(page.locator("#preview")).to_contain_text("beyond the context window")
    page.get_by_role("button", name="Submit 4 cells").click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("from the form")
    expect(page.locator("#state")).to_have_text("finished", timeout=LONG_MS)
    expect(page.locator("#grid td.measured")).to_have_count(2)
    expect(page.locator("#grid td.infeasible")).to_have_count(2)


def test_a_sweep_fills_its_matrix_and_figures_without_being_asked_again(lab: Lab, visitor: Visitor) -> None:
    sweep = lab.submit(SLOW)
    page = visitor.go(f"/sweeps/{sweep}")
    page.evaluate("window.wasHere = true")
    expect(page.locator("#grid td.leased").first).to_be_visible(timeout=LONG_MS)
    expect(page.locator("#far")).to_contain_text("Now:")
    expect(page.locator("#grid td.q0, #grid td.q5").first).to_be_visible(timeout=LONG_MS)
    expect(page.locator("#far")).to_contain_text(re.compile("about .* left"), timeout=LONG_MS)
    figures = visitor.context.new_page()
    figures.goto(f"{lab.origin}/sweeps/{sweep}/figures#throughput-vs-batch")
    expect(page.locator("#state")).to_have_text("finished", timeout=LONG_MS)
    expect(page.locator("#grid td.measured")).to_have_count(6)
    expect(figures.locator("#throughput-vs-batch svg")).to_be_visible(timeout=LONG_MS)
    expect(figures.locator("#throughput-vs-batch svg")).to_contain_text("6 results", timeout=LONG_MS)
    assert page.evaluate("window.wasHere") is True


def test_a_server_that_restarts_in_the_middle_of_a_sweep_is_found_again(lab: Lab, visitor: Visitor) -> None:
    # What the browser and htmx say of a server that is away.
    visitor.forgiven = ("net::ERR_", "htmx:sendError", "htmx:responseError", "status of 503")
    sweep = lab.submit(SLOW | {"name": "restarted"})
    page = visitor.go(f"/sweeps/{sweep}")
    page.evaluate("window.wasHere = true")
    expect(page.locator("#grid td.leased").first).to_be_visible(timeout=LONG_MS)
    [api] = [
        child for child in psutil.Process(lab.box.process.pid).children() if "effillm_server.api" in child.cmdline()
    ]
    api.kill()
    expect(page.locator("#live-state")).to_have_text("reconnecting", timeout=LONG_MS)
    expect(page.locator("#live-state")).to_have_text("live", timeout=LONG_MS)
    expect(page.locator("#state")).to_have_text("finished", timeout=LONG_MS)
    expect(page.locator("#grid td.measured")).to_have_count(6)
    assert page.evaluate("window.wasHere") is True


def test_a_sweep_is_cancelled_and_retried_from_its_page(lab: Lab, visitor: Visitor) -> None:
    sweep = lab.submit(SLOW | {"name": "stopped", "hardware": ["a10"]})
    page = visitor.go(f"/sweeps/{sweep}")
    expect(page.locator("#far")).to_contain_text("no device of class a10")
    page.get_by_text("Cancel…").click()
    page.get_by_role("button", name="Cancel 6 jobs").click()
    expect(page.locator("#state")).to_have_text("cancelled")
    page.get_by_role("button", name="Retry 6").click()
    expect(page.locator("#state")).to_have_text("pending")
    lab.http.post(f"/v1/sweeps/{sweep}/cancel")
    expect(page.locator("#state")).to_have_text("cancelled")


def test_a_cell_is_opened_from_the_matrix_with_the_keyboard_alone(lab: Lab, visitor: Visitor) -> None:
    page = visitor.go(f"/sweeps/{lab.sweep}")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    page.locator("#grid td.measured a").first.focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Timeline")).to_be_visible()
    assert page.locator("svg.timeline g").count() > 8
    expect(page.get_by_role("heading", name="Run it again by hand")).to_be_visible()


def test_the_figures_are_drawn_by_the_page_under_its_policy(lab: Lab, visitor: Visitor) -> None:
    page = visitor.go(f"/sweeps/{lab.sweep}/figures")
    for name in ("throughput-vs-batch", "throughput-vs-sequence", "throughput-heatmap"):
        figure = page.locator(f"#{name}")
        figure.scroll_into_view_if_needed()
        expect(figure.locator("svg").first).to_be_visible(timeout=LONG_MS)


def test_a_figure_that_lacks_rows_says_what_it_needs(lab: Lab, visitor: Visitor) -> None:
    page = visitor.go(f"/sweeps/{lab.sweep}/figures?filter=batch_size=1")
    figure = page.locator("#throughput-vs-batch")
    figure.scroll_into_view_if_needed()
    expect(figure.locator(".needs")).to_contain_text("Not enough data yet: it needs", timeout=LONG_MS)
    expect(figure.locator("svg")).to_have_count(0)


def test_two_precisions_are_compared_and_the_address_shows_the_same_to_others(
    lab: Lab, visitor: Visitor, chromium: Browser
) -> None:
    page = visitor.go("/compare")
    for side, precision in (("a", "fp16"), ("b", "int8")):
        page.locator(f"#{side}").select_option(lab.sweep)
        page.locator(f"input[name={side}_filter]").fill(f"quantization={precision}:model=facebook/opt-125m")
    page.get_by_role("button", name="Compare").click()
    expect(page.get_by_role("heading", name="B against A")).to_be_visible(timeout=LONG_MS)
    rows = page.locator("main table tbody tr").count()
    assert rows >= 8
    with visiting(chromium, lab.origin) as other:
        shared = other.go(page.url.removeprefix(lab.origin))
        expect(shared.locator("main table tbody tr")).to_have_count(rows, timeout=LONG_MS)


def test_a_limit_is_drawn_and_the_answer_and_address_follow(lab: Lab, visitor: Visitor) -> None:
    page = visitor.go(f"/recommend?sweep={lab.sweep}")
    expect(page.locator(".verdict-line")).to_contain_text("most tokens per second", timeout=LONG_MS)
    before = page.locator(".verdict-line").text_content()
    slider = page.get_by_label("Time to first token at most")
    expect(slider).to_have_attribute("aria-valuetext", "no limit")
    slider.focus()
    page.keyboard.press("Home")
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    expect(page.locator(".verdict-line")).not_to_have_text(before or "", timeout=LONG_MS)
    expect(page).to_have_url(re.compile("ttft_ms="))
    assert "throughput=" not in page.url.replace("aim=throughput", "")
    evidence = page.locator("#answer tbody a").first
    evidence.click()
    expect(page.get_by_role("heading", name="What was measured")).to_be_visible()


def test_the_devices_show_what_each_is_doing(lab: Lab, visitor: Visitor) -> None:
    page = visitor.go("/devices")
    expect(page.locator(".card")).to_have_count(2)
    sweep = lab.submit(SLOW | {"name": "seen from the devices"})
    expect(page.locator(".card.d-leased").first).to_contain_text("slow-0.02", timeout=LONG_MS)
    lab.http.post(f"/v1/sweeps/{sweep}/cancel")


def test_the_pages_serve_those_without_scripts_too(lab: Lab, chromium: Browser) -> None:
    with visiting(chromium, lab.origin, scripts=False) as visitor:
        page = visitor.go(f"/sweeps/{lab.sweep}")
        page.get_by_label("Colour and number").select_option("memory")
        page.get_by_role("button", name="Show").click()
        expect(page.locator("#grid caption")).to_contain_text("peak memory")
        page.get_by_role("link", name="Figures").click()
        expect(page.locator("figure img").first).to_be_attached()
        visitor.go("/sweeps/new")
        fill_in(page, "without scripts")
        page.get_by_role("button", name="Preview").click()
        expect(page.get_by_role("heading", name="Preview: 4 cells")).to_be_visible()
