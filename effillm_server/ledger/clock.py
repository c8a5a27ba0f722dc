"""Whether a box's clock is right, by the database's, which all leases go by."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

MAY_BE_OFF_S = 30.0


def clock_off(database: datetime) -> dict[str, Any] | None:
    """What to say when this box's clock differs from `database`, read just now: seconds and a sentence. None when it does not.

    Nothing breaks by it; but the times in this box's logs are wrong then.
    """
    off_s = (datetime.now(UTC) - database).total_seconds()
    if abs(off_s) <= MAY_BE_OFF_S:
        return None
    side = "ahead of" if off_s > 0 else "behind"
    return {
        "off_s": round(off_s),
        "why": f"this box's clock is {abs(off_s):.0f} s {side} the database's: set it by NTP",
    }
