"""An answer as bytes, made once for all who may have it."""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import Request, Response
from pydantic import BaseModel

from effillm_server.api import pages


@dataclass(frozen=True)
class Shown:
    """The body, and the cursor of the page behind it where it is a page of a list."""

    body: bytes
    following: str | None = None

    @classmethod
    def of(cls, view: BaseModel) -> Shown:
        return cls(view.model_dump_json(by_alias=True).encode(), getattr(view, "next", None))

    def answer(self, request: Request) -> Response:
        """As the answer to this request, whose address the link to the next page continues."""
        response = Response(self.body, media_type="application/json")
        pages.link(request, response, self.following)
        return response
