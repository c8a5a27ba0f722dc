"""A model hub on a free local port that answers what a test tells it to, over real HTTP."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class FakeHub:
    """`pages` maps a path to (status, body); everything else is 404. `asked` keeps the paths, `tokens` the authorizations."""

    url: str
    pages: dict[str, tuple[int, bytes]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    tokens: list[str | None] = field(default_factory=list)

    def serve(
        self, model: str, config: Any, *, commit: str = "c" * 40, revision: str = "main", total: int | None = None
    ) -> None:
        """Makes `model` available at `revision`, pinned to `commit`."""
        info = {"id": model, "sha": commit} | ({"safetensors": {"total": total}} if total else {})
        self.pages[f"/api/models/{model}/revision/{revision}"] = (200, json.dumps(info).encode())
        self.pages[f"/{model}/resolve/{commit}/config.json"] = (200, json.dumps(config).encode())


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    """A running hub; its thread and port are gone afterwards."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            hub.asked.append(self.path)
            hub.tokens.append(self.headers.get("authorization"))
            status, body = hub.pages.get(self.path, (404, b"{}"))
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing is printed."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = False
    hub = FakeHub(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
