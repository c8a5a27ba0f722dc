"""A headless Chromium over a running lab: a visitor whose every error, foreign request and refusal of the policy counts."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, Playwright, Request

AXE = Path(__file__).parent.parent / "browser/vendor/axe.min.js"
SERIOUS = ("serious", "critical")
DESK, PHONE = (1440, 900), (390, 844)
WITHIN_MS = 20_000


def launched(playwright: Playwright) -> Browser:
    """The system's own Chromium: none is downloaded."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert found is not None, "no Chromium is installed: make test-browser installs Debian's"
    # Root has no user namespace of its own to be put into.
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    return playwright.chromium.launch(executable_path=found, args=arguments)


@dataclass
class Visitor:
    """One person's browser on one page. `troubles` has what no visit may leave behind."""

    context: BrowserContext
    page: Page
    origin: str
    troubles: list[str] = field(default_factory=list)
    forgiven: tuple[str, ...] = ()

    def go(self, path: str) -> Page:
        self.page.goto(f"{self.origin}{path}", wait_until="load")
        return self.page

    def watch(self) -> None:
        self.page.on("console", self._on_console)
        self.page.on("pageerror", lambda error: self.troubles.append(f"error: {error}"))
        self.context.on("request", self._on_request)

    def serious(self) -> list[str]:
        """Findings of axe on this page that are serious or worse, with where they are."""
        self.page.evaluate(AXE.read_text() + ";0")
        found: dict[str, Any] = self.page.evaluate("axe.run(document, {resultTypes: ['violations']})")
        return [
            f"{one['id']}: {one['help']}: {json.dumps([node['target'] for node in one['nodes']][:5])}"
            for one in found["violations"]
            if one["impact"] in SERIOUS
        ]

    def overflow(self) -> int:
        """Pixels by which the page is wider than the window."""
        width = self.page.evaluate("document.scrollingElement.scrollWidth - document.documentElement.clientWidth")
        return int(width)

    def _on_console(self, message: ConsoleMessage) -> None:
        said = f"console {message.type}: {message.text} {message.location.get('url', '')}"
        if message.type in ("error", "warning") and not any(part in said for part in self.forgiven):
            self.troubles.append(said)

    def _on_request(self, request: Request) -> None:
        place = urlsplit(request.url)
        if place.scheme not in ("data", "blob") and f"{place.scheme}://{place.netloc}" != self.origin:
            self.troubles.append(f"request to {request.url}")


@contextmanager
def visiting(
    browser: Browser, origin: str, *, scheme: str = "light", size: tuple[int, int] = DESK, scripts: bool = True
) -> Iterator[Visitor]:
    """A visitor with cookies of their own. Raises AssertionError at the end for any trouble."""
    context = browser.new_context(
        color_scheme=scheme,  # type: ignore[arg-type]
        viewport={"width": size[0], "height": size[1]},
        java_script_enabled=scripts,
        reduced_motion="reduce",
    )
    context.set_default_timeout(WITHIN_MS)
    visitor = Visitor(context, context.new_page(), origin)
    visitor.watch()
    try:
        yield visitor
    finally:
        context.close()
    assert visitor.troubles == [], visitor.troubles
