"""Style, scripts and libraries of the pages, from this package alone: addressed by content, so that a browser keeps them."""

from __future__ import annotations

import gzip
import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from fastapi import APIRouter, Request, Response
from starlette.exceptions import HTTPException

STATIC = Path(__file__).parent / "static"
TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml", ".LICENSE": "text/plain"}
FOR_EVER = "public, max-age=31536000, immutable"
router = APIRouter(tags=["assets"], include_in_schema=False)


@dataclass(frozen=True)
class Asset:
    """A file as it is sent."""

    content: bytes
    packed: bytes
    media_type: str
    digest: str


@cache
def assets() -> dict[str, Asset]:
    """Every file of the static folder by its path below it, read once."""
    return {str(path.relative_to(STATIC)): _read(path) for path in sorted(STATIC.rglob("*")) if path.suffix in TYPES}


def address(name: str) -> str:
    """Where the asset is served, with its digest: another content has another address."""
    return f"/static/{name}?v={assets()[name].digest}"


@router.get("/static/{name:path}")
def asset(request: Request, name: str, v: str = "") -> Response:
    """The file; kept for ever where its digest was asked for."""
    found = assets().get(name)
    if found is None:
        raise HTTPException(404, f"there is no file {name[:100]!r} here")
    headers = {"Vary": "Accept-Encoding", "Cache-Control": FOR_EVER if v == found.digest else "no-cache"}
    if "gzip" not in request.headers.get("accept-encoding", ""):
        return Response(found.content, media_type=found.media_type, headers=headers)
    return Response(found.packed, media_type=found.media_type, headers=headers | {"Content-Encoding": "gzip"})


def _read(path: Path) -> Asset:
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()[:12]
    return Asset(content, gzip.compress(content, mtime=0), TYPES[path.suffix], digest)
