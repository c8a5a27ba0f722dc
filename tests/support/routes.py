"""Every route of the application, found by walking it, and a request to each of them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from fastapi.routing import APIRoute
from starlette.routing import BaseRoute

from effillm_server.api import examples, insight_examples
from effillm_server.api.app import create_app
from effillm_server.ledger.engine import connect
from effillm_server.settings import Settings

# What a request needs beside its path, so that only who asks is in question.
QUERIES: dict[str, dict[str, str]] = {
    "/v1/compare": {"a": "{sweep_id}:batch_size=1", "b": "{sweep_id}:batch_size=4"},
    "/v1/events": {"follow": "false", "after": "0"},
}
BODIES: dict[tuple[str, str], dict[str, Any]] = {
    ("POST", "/v1/sweeps"): examples.DEFINITION,
    ("POST", "/v1/sweeps/preview"): examples.DEFINITION,
    ("POST", "/v1/recommendations"): {"sweep": "{sweep_id}", "aim": "throughput"},
    ("POST", "/v1/keys"): {"owner": "mallory", "scopes": ["admin"]},
}
FORM = {"Content-Type": "application/x-www-form-urlencoded"}


@dataclass(frozen=True)
class Operation:
    """A method on a path with its parameters in braces."""

    method: str
    path: str

    def __str__(self) -> str:
        return f"{self.method} {self.path}"

    @property
    def is_page(self) -> bool:
        return not self.path.startswith(("/v1/", "/metrics"))

    def request(self, **ids: object) -> dict[str, Any]:
        """Arguments of httpx.Client.request, `ids` in the place of the parameters."""
        values: dict[str, object] = {
            "sweep_id": examples.SWEEP_ID, "job_id": examples.JOB_ID, "device_id": examples.DEVICE_ID, "key_id": 999,
            "name": insight_examples.FIGURE, "format": "json",
        }  # fmt: skip
        values |= ids
        url = re.sub(r"{(\w+)(:path)?}", lambda match: str(values[match[1]]), self.path)
        found: dict[str, Any] = {"method": self.method, "url": url}
        if self.path in QUERIES:
            found["params"] = _filled(QUERIES[self.path], values)
        if (self.method, self.path) in BODIES:
            found["json"] = _filled(BODIES[self.method, self.path], values)
        elif self.is_page and self.method == "POST":
            found |= {"content": "x=1", "headers": dict(FORM)}
        return found


def operations() -> list[Operation]:
    """All that is served, in order of path; what FastAPI adds by itself included."""
    engine = connect("postgresql://nobody@127.0.0.1:9/nothing", "api")
    try:
        app = create_app(Settings(), engine)
    finally:
        engine.dispose()
    found = {
        Operation(method, path) for path, methods in _walked(app.routes, "") for method in methods if method != "HEAD"
    }
    return sorted(found, key=lambda operation: (operation.path, operation.method))


def _walked(routes: Iterable[BaseRoute], before: str) -> Iterator[tuple[str, Iterable[str]]]:
    for route in routes:
        inner = getattr(route, "routes", None)
        path = before + str(getattr(route, "path", ""))
        if isinstance(route, APIRoute) or (hasattr(route, "methods") and hasattr(route, "path")):
            yield path, getattr(route, "methods", None) or ("GET",)
        elif inner is not None:
            yield from _walked(inner, path)
        elif original := getattr(route, "original_router", None):
            yield from _walked(original.routes, before)


def _filled(template: dict[str, Any], values: dict[str, object]) -> dict[str, Any]:
    return {
        key: value.format_map(values) if isinstance(value, str) and value.startswith("{") else value
        for key, value in template.items()
    }
