"""What an autoscaling cluster is asked for, and which of its devices are let go: from zero when jobs wait, back when none do."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from effillm_server.lifecycle import DeviceState
from effillm_server.records import DeviceRecord
from effillm_server.settings import Settings
from effillm_worker.fleet.offers import CLASS_PREFIX, Offer, Pool
from effillm_worker.log import event

# A head that was replaced has forgotten what it was asked for.
REPEAT_S = 60.0

Bundle = dict[str, float]


class Scaling:
    """Asks for devices by class while jobs of it wait, and ends the actors of idle ones: a node whose actors live is never idle
    to Ray. Does nothing unless EFFILLM_AUTOSCALE says how many devices of a class to ask for."""

    def __init__(self, pool: Pool, settings: Settings, clock: Callable[[], float]) -> None:
        self._pool = pool
        self._most = settings.autoscale
        self._idle_s = settings.autoscale_idle_s
        self._clock = clock
        self._asked: list[Bundle] | None = None
        self._asked_at = 0.0
        self._waiting: Mapping[str, int] = {}
        self._idle_since: dict[str, float] = {}
        self._retired: set[str] = set()

    def wanted(self, offers: Iterable[Offer]) -> list[Offer]:
        """The devices that are to have an actor: all of them, except those let go until their class waits again."""
        return [
            offer
            for offer in offers
            if offer.device_id not in self._retired or self._waiting.get(offer.hardware_class, 0) > 0
        ]

    def look(self, waiting: Mapping[str, int], devices: Iterable[DeviceRecord], offers: Mapping[str, Offer]) -> None:
        """Ask for what is missing, let go what has been idle for long."""
        if self._most == 0:
            return
        self._waiting = waiting
        self._ask(bundles(waiting, self._most))
        self._retired = {device_id for device_id in self._retired if device_id in offers}
        self._retired -= {offer.device_id for offer in offers.values() if waiting.get(offer.hardware_class, 0) > 0}
        now = self._clock()
        idle = {
            device.id
            for device in devices
            if device.id in offers
            and device.state in (DeviceState.FREE, DeviceState.DRAINING)
            and waiting.get(device.hardware_class, 0) == 0
        }
        self._idle_since = {device_id: self._idle_since.get(device_id, now) for device_id in idle}
        for device_id, since in self._idle_since.items():
            if now - since >= self._idle_s and device_id not in self._retired:
                # Leases for idle devices are granted by this very thread, so none can come in between.
                self._pool.retire(device_id)
                self._retired.add(device_id)
                event("device.let_go", device=device_id, idle_s=round(now - since))

    def _ask(self, wanted: list[Bundle]) -> None:
        now = self._clock()
        if wanted == self._asked and (not wanted or now - self._asked_at < REPEAT_S):
            return
        self._pool.request(wanted)
        if wanted != self._asked:
            event("cluster.asked", bundles=wanted)
        self._asked, self._asked_at = wanted, now


def bundles(waiting: Mapping[str, int], most: int) -> list[Bundle]:
    """One bundle for each device to have: a device serves one job at a time, and no class gets more than `most`."""
    return [
        {f"{CLASS_PREFIX}{hardware_class}": 1}
        for hardware_class, jobs in sorted(waiting.items())
        for _ in range(min(jobs, most))
    ]
