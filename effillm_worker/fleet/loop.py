"""The fleet's loop: every second, or when something happened, an actor on every device and a job for every free one."""

from __future__ import annotations

import random
import threading
import time
import traceback
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from effillm_server.ledger import queries, queue
from effillm_server.ledger.clock import clock_off
from effillm_server.lifecycle import DeviceState
from effillm_server.records import DeviceRecord
from effillm_server.settings import Settings
from effillm_worker.fleet.leadership import Leadership
from effillm_worker.fleet.offers import Offer, Pool
from effillm_worker.fleet.scaling import Scaling
from effillm_worker.log import event
from effillm_worker.reports import first_line

POLL_S = 1.0
# A burst of notifications is one wake-up.
LEAST_BETWEEN_TICKS_S = 0.05
HEAD_LOST_S = 60.0
REAPS_PER_TTL = 12
# An actor gives a sign of life six times per TTL; three missed ones are silence.
SILENCES_PER_TTL = 2


class Fleet:
    """One active fleet per ledger; others stand by."""

    def __init__(
        self, engine: Engine, pool: Pool, settings: Settings, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._engine = engine
        self._pool = pool
        self._settings = settings
        self._clock = clock
        self._leadership = Leadership(engine)
        self._scaling = Scaling(pool, settings, clock)
        self._reap_from: datetime | None = None
        self._stopping = threading.Event()
        self._head_seen = clock()
        self._reaped = clock()
        self._ray_fails = False
        self._was_active: bool | None = None
        self._missing: frozenset[str] = frozenset()
        self._is_clock_off = False
        self._checked: set[tuple[str, int | None]] = set()

    def run(self) -> int:
        """The exit code: 0 when told to stop, 1 when Ray's head has been away too long for this process to recover."""
        while not self._stopping.is_set():
            if not self._has_head():
                event("head.lost", after_s=HEAD_LOST_S)
                return 1
            self.tick()
            self._stopping.wait(LEAST_BETWEEN_TICKS_S)
            self._leadership.wait(POLL_S)
        self._leadership.resign()
        return 0

    def stop(self) -> None:
        self._stopping.set()

    def tick(self) -> bool:
        """One turn; whether this fleet was the active one."""
        is_active = self._leadership.is_held()
        if is_active != self._was_active:
            event("fleet.active" if is_active else "fleet.standby")
            self._was_active = is_active
        if is_active:
            self._ray_fails = False
            try:
                self._serve()
            except SQLAlchemyError as error:
                event("database.away", doing="tick", why=first_line(error))
            except Exception:  # noqa: BLE001 - the loop is the edge; Ray's own errors come in many kinds, the next turn tries again
                event("tick.error", error=traceback.format_exc())
                self._ray_fails = True
        return is_active

    def _serve(self) -> None:
        offers = self._pool.offers()
        statuses = self._pool.statuses(self._scaling.wanted(offers.values()))
        with self._engine.begin() as connection:
            devices = {device.id: device for device in queries.devices(connection)}
            waiting = queries.waiting_classes(connection)
            now = queue.database_time(connection)
        self._check_clock(now)
        self._mark_lost(devices, offers, now)
        self._report_missing(waiting, offers)
        for device_id, status in statuses.items():
            device = devices.get(device_id)
            if device is not None and device.boot_id == status["boot_id"]:
                self._feed(device, status, waiting)
        self._scaling.look(waiting, devices.values(), offers)
        self._reap()

    def _feed(self, device: DeviceRecord, status: dict[str, Any], waiting: dict[str, int]) -> None:
        """Give an idle device its lease: a new one, or the one it was granted and never got to hear of."""
        is_idle = status["job_id"] is None
        if device.state is DeviceState.RELEASING and not is_idle:
            self._check_once(device.id, status["job_id"])
        granted_unheard = is_idle and device.state is DeviceState.LEASED
        wants_work = is_idle and device.state is DeviceState.FREE and waiting.get(device.hardware_class, 0) > 0
        if not (granted_unheard or wants_work):
            return
        request = queue.LeaseRequest(
            device_id=device.id,
            boot_id=status["boot_id"],
            ttl_s=self._settings.lease_ttl_s,
            group_max_age_s=self._settings.group_max_age_s,
            held_group=status["group"],
            held_since=status["group_since"],
        )
        with self._engine.begin() as connection:
            lease = queue.lease(connection, request)
        if lease is not None:
            event("lease.granted", job=lease.job_id, fence=lease.fence, device=device.id, again=granted_unheard)
            self._pool.start(device.id, lease)

    def _check_once(self, device_id: str, job_id: int | None) -> None:
        """A cancelled job: its actor would find out at its next renewal, and need not wait for that."""
        if (device_id, job_id) not in self._checked:
            self._checked = {seen for seen in self._checked if seen[0] != device_id} | {(device_id, job_id)}
            self._pool.check(device_id)

    def _mark_lost(self, devices: dict[str, DeviceRecord], offers: dict[str, Offer], now: datetime) -> None:
        """Give up devices whose node left the cluster and whose actor is silent.

        An actor may outlive its place in the cluster for a minute, after the head was replaced for one: as long as it
        renews, what it measures is worth waiting for.
        """
        patience = timedelta(seconds=self._settings.lease_ttl_s / SILENCES_PER_TTL)
        for device in devices.values():
            is_silent = device.last_seen is None or now - device.last_seen > patience
            if device.id not in offers and is_silent and device.state is not DeviceState.LOST:
                reason = f"its node {device.node} is not in the Ray cluster"
                with self._engine.begin() as connection:
                    queue.mark_lost(connection, device.id, reason)
                event("device.lost", device=device.id, why=reason)

    def _check_clock(self, database: datetime) -> None:
        off = clock_off(database)
        if off is not None and not self._is_clock_off:
            event("clock.off", **off)
        self._is_clock_off = off is not None

    def _report_missing(self, waiting: dict[str, int], offers: dict[str, Offer]) -> None:
        offered = {offer.hardware_class for offer in offers.values()}
        missing = frozenset(name for name, jobs in waiting.items() if jobs > 0 and name not in offered)
        for name in sorted(missing - self._missing):
            event("class.missing", hardware_class=name, jobs=waiting[name], why=f"no device of class {name}")
        for name in sorted(self._missing - missing):
            event("class.there", hardware_class=name)
        self._missing = missing

    def _reap(self) -> None:
        """Take back expired leases. Everybody had one time to live since this fleet came up to renew theirs."""
        now = self._clock()
        if now - self._reaped < self._settings.lease_ttl_s / REAPS_PER_TTL:
            return
        self._reaped = now
        with self._engine.begin() as connection:
            if self._reap_from is None:
                self._reap_from = queue.database_time(connection) + timedelta(seconds=self._settings.lease_ttl_s)
            reaped = queue.reap(connection, random.random, not_before=self._reap_from)
        for job_id, fence in reaped:
            event("lease.expired", job=job_id, fence=fence)

    def _has_head(self) -> bool:
        """Whether Ray's head answered within the last minute, us too. A driver that lost its head does not get it back, even
        when another one listens there."""
        now = self._clock()
        if self._pool.is_reachable() and not self._ray_fails:
            self._head_seen = now
        return now - self._head_seen < HEAD_LOST_S
