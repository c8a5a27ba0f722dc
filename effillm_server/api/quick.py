"""The way past the framework for what is asked most: a few plain questions of callers who are known already.

Finding the route, its dependencies and its parameters takes FastAPI longer than the answer takes. Here the same route functions are
called with what they would have been called with. Whatever is not plain goes the usual way: other parameters, a caller who must
be looked up first, and everything that ends in a problem, which is then told in the routes' own words.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy
from fastapi import Request, Response
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from effillm_server.api import auth
from effillm_server.api.services import Services
from effillm_server.errors import EffillmError

_NAME = re.compile(r"\{(\w+)\}")
_LIMIT = re.compile(rb"limit=([1-9][0-9]{0,2})")
Answering = Callable[..., Awaitable[Response]]


@dataclass(frozen=True)
class QuickRoute:
    """A route's path as the application has it, and its function, which takes request, services, caller and what the path names."""

    path: str
    answer: Answering

    @property
    def pattern(self) -> re.Pattern[str]:
        return re.compile(_NAME.sub(r"(?P<\1>[A-Za-z0-9_-]{1,64})", self.path))

    @property
    def has_limit(self) -> bool:
        return "limit" in inspect.signature(self.answer).parameters


class Quick:
    """Answers GET requests of `routes`; what it does not answer goes to `app`."""

    def __init__(self, app: ASGIApp, *, served: Services, routes: Sequence[QuickRoute]) -> None:
        self.app = app
        self._served = served
        self._routes = [(route.pattern, route.has_limit, route) for route in routes]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = None
        if scope["type"] == "http" and scope["method"] == "GET":
            answer = await self._answer(scope)
        if answer is None:
            await self.app(scope, receive, send)
        else:
            await answer(scope, receive, send)

    async def _answer(self, scope: Scope) -> Response | None:
        for pattern, has_limit, route in self._routes:
            found = pattern.fullmatch(scope["path"])
            if found is None:
                continue
            arguments: dict[str, Any] = found.groupdict()
            if query := scope["query_string"]:
                limit = _LIMIT.fullmatch(query) if has_limit else None
                if limit is None:
                    return None
                arguments["limit"] = int(limit[1])
            return await self._call(route, Request(scope), arguments)
        return None

    async def _call(self, route: QuickRoute, request: Request, arguments: dict[str, Any]) -> Response | None:
        who = auth.known_at_once(request)
        if who is None or not who.may(auth.Scope.READ):
            return None
        if who.key_id is not None and self._served.rates.by_key.take(who.key_id) > 0:
            return None
        try:
            answer = await route.answer(request, self._served, who, **arguments)
        except (EffillmError, HTTPException, sqlalchemy.exc.SQLAlchemyError):
            return None
        request.scope["route"] = route  # what the metrics count it under
        return answer
