"""Clocks of a test's own: a monotonic one that it moves by hand, and a calendar that is wrong."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta, tzinfo


@dataclass
class FakeClock:
    """Called like time.monotonic."""

    now_s: float = 1000.0

    def __call__(self) -> float:
        return self.now_s


def a_clock_off_by(by: timedelta) -> type[datetime]:
    """What stands in for `datetime` in a module whose box has a wrong clock."""

    class Off(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
            return datetime.now(tz) + by

    return Off
