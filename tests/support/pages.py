"""Pages as the tests look at them: what stands in the markup, and a lab with a sweep that was really run."""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from sqlalchemy import Engine

from effillm_server.ledger import queries
from effillm_server.lifecycle import JobState
from tests.support import actors
from tests.support.api import Api

HOSTILE = "<script>alert('name')</script> & \"quoted\" {{ 7 * 7 }}"
# Of the engine `simulated`: it declares its times, so that a sweep takes seconds. Two cells are beyond the context window.
DEFINITION: dict[str, Any] = {
    "name": HOSTILE, "models": ["facebook/opt-125m"], "hardware": ["t4"], "quantization": ["fp16", "int8"],
    "batch_size": [1, 4], "sequence_length": [128, 2048], "generate_tokens": 8, "engine": "simulated",
    "measurement": {"warmup": 3, "iterations": 5},
}  # fmt: skip


@dataclass
class Markup(HTMLParser):
    """A page taken apart: its text, every element with its attributes, and what a strict policy would not run."""

    elements: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    said: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    @classmethod
    def of(cls, page: str) -> Markup:
        made = cls()
        made.feed(page)
        made.close()
        return made

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        self.said.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.said).split())

    def all(self, tag: str, **attributes: str) -> list[dict[str, str]]:
        return [found for name, found in self.elements if name == tag and attributes.items() <= found.items()]

    @property
    def inline(self) -> list[str]:
        """Everything that would need `unsafe-inline`, and addresses that run code."""
        found = [f"<{tag}>" for tag, at in self.elements if tag == "style" or (tag == "script" and not at.get("src"))]
        for tag, at in self.elements:
            found += [f"<{tag} {name}>" for name in at if name == "style" or name.startswith(("on", "hx-on"))]
            found += [
                f"<{tag} {name}={value}>" for name, value in at.items() if value.strip().startswith("javascript:")
            ]
        return found

    @property
    def outside(self) -> list[str]:
        """Addresses on other hosts that a browser would load or go to."""
        return [
            value
            for _, at in self.elements
            for name, value in at.items()
            if name in ("src", "href", "action", "hx-get", "hx-post", "data-chart") and "//" in value
        ]


def measure(api: Api, folder: Path, **changes: Any) -> dict[str, Any]:
    """A sweep that an actor with real children has run to its end."""
    sweep = api.submit(**(DEFINITION | changes))
    with actors.running(actors.settings(_url(api.engine), folder)) as actor:
        actors.wait_free(api.engine)
        while (job_id := _next(api.engine, sweep["id"])) is not None:
            actors.grant(api.engine, actor)
            actors.wait_state(api.engine, job_id, *(state for state in JobState if state.is_terminal))
            actors.wait_free(api.engine)
    return dict(api.http.get(f"/v1/sweeps/{sweep['id']}").json())


def _next(engine: Engine, sweep_id: str) -> int | None:
    with engine.begin() as connection:
        waiting = queries.jobs(connection, sweep_id, None, 1, JobState.PENDING)
    return waiting[0].id if waiting else None


def _url(engine: Engine) -> str:
    return engine.url.render_as_string(hide_password=False)
