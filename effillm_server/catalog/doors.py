"""Which models an operator lets in from the hub."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase


def is_allowed(model: str, patterns: Iterable[str]) -> bool:
    """Whether the hub id matches one of the patterns: `facebook/opt-*`, `*`; upper and lower case differ, as on the hub."""
    return any(fnmatchcase(model, pattern) for pattern in patterns)
