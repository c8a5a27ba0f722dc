"""Problems as pages: for a browser that asked for one, the same words as the API's problem document."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from typing import Any
from urllib.parse import urlencode

from fastapi import FastAPI, Request, Response
from starlette.responses import RedirectResponse

from effillm_server.web.templating import page

# Under these a program is served, whatever it says that it accepts.
PROGRAMS = ("/v1/", "/static/", "/metrics", "/openapi.json", "/healthz", "/readyz")
UNAUTHORIZED = 401


def install(app: FastAPI) -> None:
    """Wrap every handler that answers with a problem document; to be called behind `problems.install`."""
    for kind, handler in list(app.exception_handlers.items()):
        # FastAPI's own, which are left for WebSockets alone, are coroutines.
        if not inspect.iscoroutinefunction(handler):
            app.add_exception_handler(kind, _for_browsers(handler))


def _for_browsers(handler: Callable[..., Any]) -> Callable[[Request, Exception], Response]:
    def handle(request: Request, error: Exception) -> Response:
        answer: Response = handler(request, error)
        if not wants_page(request) or not answer.headers.get("content-type", "").startswith("application/problem+json"):
            return answer
        if answer.status_code == UNAUTHORIZED:
            return RedirectResponse(_login(request), 303)
        problem = json.loads(bytes(answer.body))
        shown = page(request, None, "problem.html", status=answer.status_code, problem=problem)
        shown.headers.update({name: value for name, value in answer.headers.items() if name == "retry-after"})
        return shown

    return handle


def wants_page(request: Request) -> bool:
    """Whether a person's browser asks for a page."""
    return "text/html" in request.headers.get("accept", "") and not request.url.path.startswith(PROGRAMS)


def _login(request: Request) -> str:
    """Where to sign in, and from there back to here."""
    if request.method != "GET":
        return "/login"
    query = f"?{request.url.query}" if request.url.query else ""
    return "/login?" + urlencode({"to": request.url.path + query})
