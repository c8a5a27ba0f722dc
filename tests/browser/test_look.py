"""Each page as it is seen: nothing serious for axe, nothing wider than the window, light and dark, desk and phone.

EFFILLM_SCREENSHOTS names a folder to keep the pictures in.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from tests.browser.conftest import Lab
from tests.support.browser import DESK, PHONE, visiting

pytestmark = pytest.mark.browser
PAGES = {
    "sweeps": "/sweeps",
    "submit": "/sweeps/new",
    "submit-yaml": "/sweeps/new?mode=yaml",
    "matrix": "/sweeps/{sweep}",
    "matrix-state": "/sweeps/{sweep}?colour=state",
    "findings": "/sweeps/{sweep}/findings",
    "figures": "/sweeps/{sweep}/figures",
    "frontier": "/sweeps/{sweep}/frontier",
    "jobs": "/sweeps/{sweep}/jobs",
    "definition": "/sweeps/{sweep}/definition",
    "cell": "/jobs/{measured}",
    "cell-infeasible": "/jobs/{infeasible}",
    "devices": "/devices",
    "compare": "/compare?a={sweep}&b={sweep}&a_filter=quantization=fp16&b_filter=quantization=int8",
    "recommend": "/recommend?sweep={sweep}&memory_mb=1000",
    "keys": "/keys",
    "login": "/login",
    "not-found": "/sweeps/none",
}
# Of these the first window is enough to see what they look like.
LONG = ("figures", "findings", "cell", "jobs", "compare", "frontier", "keys")
LONG_MS = 60_000


@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_page_can_be_read_by_everybody(lab: Lab, chromium: Browser, scheme: str, size: tuple[int, int]) -> None:
    kept = os.environ.get("EFFILLM_SCREENSHOTS")
    values = {
        "sweep": lab.sweep,
        "measured": lab.job(lab.sweep, "measured", batch_size=4),
        "infeasible": lab.job(lab.sweep, "infeasible"),
    }
    found: dict[str, list[str]] = {}
    with visiting(chromium, lab.origin, scheme=scheme, size=size) as visitor:
        visitor.forgiven = ("the server responded with a status of 404",)
        visitor.go(lab.link())
        for name, path in PAGES.items():
            page = visitor.go(path.format(**values))
            if name == "figures":
                expect(page.locator("figure svg").first).to_be_visible(timeout=LONG_MS)
                expect(page.locator("figure[aria-busy]")).to_have_count(0, timeout=LONG_MS)
            if kept:
                width = "desk" if size == DESK else "phone"
                file = Path(kept) / f"{name}-{scheme}-{width}.jpg"
                page.screenshot(path=file, type="jpeg", quality=60, full_page=name not in LONG)
            if troubles := visitor.serious():
                found[name] = troubles
            if (wider := visitor.overflow()) > 0:
                found.setdefault(name, []).append(f"{wider} pixels wider than the window")
    assert found == {}


def test_a_page_is_printed_on_white_without_its_buttons(lab: Lab, chromium: Browser) -> None:
    with visiting(chromium, lab.origin, scheme="dark") as visitor:
        page = visitor.go(f"/sweeps/{lab.sweep}")
        page.emulate_media(media="print")
        assert page.evaluate("getComputedStyle(document.body).getPropertyValue('--paper')") == "#fff"
        expect(page.locator("nav").first).not_to_be_visible()
        expect(page.locator("#grid")).to_be_visible()
        assert len(page.pdf()) > 10_000


def test_a_figure_drawn_for_a_dark_screen_is_printed_light(lab: Lab, chromium: Browser) -> None:
    with visiting(chromium, lab.origin, scheme="dark") as visitor:
        page = visitor.go(f"/sweeps/{lab.sweep}/figures")
        drawn = page.locator("figure.dark .chart svg").first
        expect(drawn).to_be_visible(timeout=LONG_MS)
        expect(drawn).to_have_css("filter", "none")
        page.emulate_media(media="print")
        expect(drawn).to_have_css("filter", "invert(1) hue-rotate(180deg)")
