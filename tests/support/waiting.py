"""Wait for something to become true, with a deadline that says what did not happen."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def until(what: str, look: Callable[[], T], within_s: float = 20.0, every_s: float = 0.05) -> T:
    """The first true value of `look`. Raises AssertionError naming `what` and the last value after `within_s`."""
    deadline = time.monotonic() + within_s
    while True:
        found = look()
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within_s:g} s: {what}; last seen: {found!r}")
        time.sleep(every_s)
