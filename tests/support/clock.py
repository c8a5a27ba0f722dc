"""A monotonic clock that a test moves by hand."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class FakeClock:
    """Called like time.monotonic."""

    now_s: float = 1000.0

    def __call__(self) -> float:
        return self.now_s
