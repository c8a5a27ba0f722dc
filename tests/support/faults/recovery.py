"""When a fault counts as survived: what a lab looks like from outside while it comes back."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import httpx
import sqlalchemy

from tests.support.faults.lab import Lab
from tests.support.faults.tree import Process

# A lapsed cell that hangs keeps its device until its own deadline, because its actor reports late rather than give up: ten
# per cent and two minutes beyond the plan's time limit of 30 s, and then the end of the process tree.
LONGEST_CELL_S = 200.0


@dataclass
class Recovery:
    """A fault that was injected at `since`. `looks` must all have been true once, in any order, within `limit_s`.

    `touches`: what no other fault may touch meanwhile. `doomed`: processes that must die of it by themselves.
    """

    name: str
    looks: list[Callable[[], bool]]
    touches: frozenset[str]
    limit_s: float = LONGEST_CELL_S
    doomed: Sequence[Process] = ()
    since: float = field(default_factory=time.monotonic)
    healed: float | None = None
    gone_s: float | None = None
    kind: str = ""
    alone: bool = False

    @property
    def lasts(self) -> bool:
        """Whether it is a condition of the whole lab, of which one at a time is enough."""
        return self.touches == {self.name}

    def is_over(self) -> bool:
        """Looks again at what has not come true yet; a database that is away makes nothing true."""
        if self.gone_s is None and not any(process.is_living for process in self.doomed):
            self.gone_s = time.monotonic() - self.since
        try:
            while self.looks and self.looks[0]():
                self.looks.pop(0)
        except (sqlalchemy.exc.DBAPIError, httpx.HTTPError):
            return False
        return not self.looks and self.gone_s is not None

    @property
    def seconds(self) -> float:
        """Since the fault, or, where it lasted, since it was taken away."""
        return time.monotonic() - (self.healed or self.since)

    def heal(self) -> None:
        """The fault itself is over; what follows is the recovery."""
        self.healed = time.monotonic()

    def is_healed(self) -> bool:
        return self.healed is not None


def now() -> datetime:
    return datetime.now(UTC)


def devices(lab: Lab) -> dict[str, Any]:
    rows = lab.database.read("SELECT id, state, boot_id, last_seen, node, declared FROM device")
    return {str(row[0]): row for row in rows}


def device_back(lab: Lab, device: str, since: datetime, not_boot: str | None = None) -> bool:
    """Whether the device takes work, was seen after `since`, and is spoken for by another actor where one was killed."""
    row = devices(lab).get(device)
    usable = row is not None and row.state in ("free", "leased") and row.last_seen > since
    return bool(usable and row.boot_id != not_boot)  # type: ignore[union-attr]


def lease_of(lab: Lab, device: str) -> tuple[int, int] | None:
    rows = lab.database.read("SELECT job_id, fence FROM lease_device WHERE device_id = :device", device=device)
    return (int(rows[0][0]), int(rows[0][1])) if rows else None


def attempt_ended(lab: Lab, lease: tuple[int, int] | None) -> bool:
    """Whether that attempt has an outcome by now."""
    if lease is None:
        return True
    rows = lab.database.read(
        "SELECT ended_at FROM attempt WHERE job_id = :job AND fence = :fence", job=lease[0], fence=lease[1]
    )
    return bool(rows) and rows[0][0] is not None


def all_back(lab: Lab, names: Sequence[str], since: datetime, boots: dict[str, str | None] | None = None) -> bool:
    """Whether all of these devices take work again."""
    found = devices(lab)
    return all(
        name in found
        and found[name].state in ("free", "leased")
        and found[name].last_seen > since
        and found[name].boot_id != (boots or {}).get(name, "")
        for name in names
    )


def is_serving(lab: Lab, since: datetime) -> bool:
    """Whether the API answers, a fleet leads, every device lives, and an attempt that was reported has ended since."""
    if httpx.get(f"{lab.api}/readyz", timeout=2).status_code != 200 or lab.active_fleet() is None:
        return False
    found = devices(lab).values()
    if not all(row.last_seen > since and row.state in ("free", "leased") for row in found):
        return False
    return bool(lab.database.scalar("SELECT EXISTS (SELECT FROM attempt WHERE reported AND ended_at > :at)", at=since))


def fleet_serves(lab: Lab) -> bool:
    """Whether a fleet leads and has found the actors of all usable devices."""
    leader = lab.active_fleet()
    if leader is None:
        return False
    known = {line["device"] for line in lab.kept[leader].said("actor.adopted", "actor.made")}
    usable = {name for name, row in devices(lab).items() if row.state in ("free", "leased")}
    return usable <= known
