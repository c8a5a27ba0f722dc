"""When a fault counts as survived: what a lab looks like from outside while it comes back."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import httpx
import sqlalchemy

from effillm_worker.bench import CELL_MARGIN_S
from tests.support.faults.ends import Infliction
from tests.support.faults.lab import Lab
from tests.support.faults.tree import Process
from tests.support.faults.workload import HANGING, PLAN

# A lease that lapsed while its cell hung keeps its device until that cell's own deadline, because its actor reports late
# rather than give up. What reliability asks of a hang is that it ends by its deadline and ten seconds.
HUNG_CELL_S = PLAN["time_limit_s"] * 1.1 + CELL_MARGIN_S + 10.0


@dataclass
class Recovery:
    """A fault that was injected at `since`. `looks` must all have been true once, in order, within `limit_s`.

    `touches`: what no other fault may touch meanwhile. `doomed`: processes that must die of it by themselves, within
    `gone_within_s`. `classified_s`: when the ledger knew the attempt's end. Other faults that were there at the same time
    (`disturbed_s`) and a hung cell on one of its devices (`allowance_s`) put all limits off.
    """

    name: str
    looks: list[Callable[[], bool]]
    touches: frozenset[str]
    limit_s: float = 90.0
    doomed: Sequence[Process] = ()
    gone_within_s: float = 15.0
    classified_s: float | None = None
    disturbed_s: float = 0.0
    allowance_s: float = 0.0
    since: float = field(default_factory=time.monotonic)
    began: datetime = field(default_factory=lambda: datetime.now(UTC))
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

    @property
    def is_still_on(self) -> bool:
        """Whether the fault itself lasts yet: what surviving it takes is counted from its end."""
        return self.healed is None and self.is_healed in self.looks

    def may_take(self, seconds: float) -> float:
        """What becomes of a limit of `seconds` for this one."""
        return seconds + self.disturbed_s + self.allowance_s

    def infliction(self) -> Infliction:
        """What this fault may explain, now that it is over. Where no fleet is there in time, any device's lease may lapse."""
        everywhere = self.alone or self.lasts or "fleet" in self.touches
        return Infliction(self.touches, everywhere, self.began, datetime.now(UTC))

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


def ended_after(lab: Lab, lease: tuple[int, int] | None, since: datetime) -> float | None:
    """Seconds from `since` to the end of that attempt, None while it has no outcome; 0 where there was nothing to end."""
    if lease is None:
        return 0.0
    rows = lab.database.read(
        "SELECT ended_at FROM attempt WHERE job_id = :job AND fence = :fence", job=lease[0], fence=lease[1]
    )
    if not rows or rows[0][0] is None:
        return None
    return max(0.0, float((rows[0][0] - since).total_seconds()))


def hung_cells(lab: Lab, names: Iterable[str]) -> int:
    """How many of these devices measure a cell that will hang."""
    rows = lab.database.read(
        "SELECT l.device_id FROM lease_device l JOIN job j ON j.id = l.job_id WHERE j.model = ANY(:models)",
        models=list(HANGING),
    )
    return len({str(row[0]) for row in rows} & set(names))


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
