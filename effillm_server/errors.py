"""The errors of the control plane: a class exists because somebody catches it."""

from __future__ import annotations


class EffillmError(Exception):
    """Base of all errors a user may see. The message says what was expected, found, and what to do."""


class BadInput(EffillmError):
    """The input cannot be accepted: HTTP 422, exit code 2. `field` names the place, dotted, when there is one."""

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class NotFound(EffillmError):
    """Nothing has this id, or the caller may not know of it: HTTP 404, exit code 2."""


class Conflict(EffillmError):
    """The request contradicts the stored state: HTTP 409, exit code 2."""


class Unavailable(EffillmError):
    """Something this process needs does not answer: HTTP 503, exit code 1."""
