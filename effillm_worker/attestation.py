"""How a device becomes usable: its actor shows that the lock is free and nothing foreign is on it, and says what it is."""

from __future__ import annotations

import threading

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

from effillm_server.contract.fingerprint import DeviceDeclaration, Fingerprint
from effillm_server.ledger import queries, queue
from effillm_server.ledger.clock import clock_off
from effillm_server.lifecycle import DeviceState
from effillm_server.settings import Settings
from effillm_worker.ceilings import ceiling
from effillm_worker.engines.base import Environment
from effillm_worker.isolate import attest
from effillm_worker.log import event
from effillm_worker.measure.software import software
from effillm_worker.reports import Identity, Reports, Stopping

USABLE = frozenset({DeviceState.FREE, DeviceState.LEASED, DeviceState.DRAINING})
RETRY_S = 1.0


class Superseded(Exception):
    """A younger actor speaks for this device now."""


class Attestation:
    """Brings one device from quarantined, lost or releasing back to use."""

    def __init__(
        self,
        device: DeviceDeclaration,
        settings: Settings,
        engine: Engine,
        who: Identity,
        reports: Reports,
        stopping: threading.Event,
    ) -> None:
        self._device = device
        self._settings = settings
        self._engine = engine
        self._who = who
        self._reports = reports
        self._stopping = stopping
        self._is_registered = False
        self._reason: str | None = None

    def settle(self) -> None:
        """Returns once the ledger counts the device as usable. Raises Stopping, Superseded."""
        who = self._who
        if not self._is_registered:
            self._reports.persist("register", lambda c: queue.register_device(c, self._device, who.boot_id))
            self._is_registered = True
            self._check_clock()
        while True:
            state = self._reports.persist("look", self._state)
            if state in USABLE:
                return
            reason = attest(self._device, self._settings.lock_dir)
            if reason is None:
                self._pass(state)
            else:
                self._refuse(reason)
                if self._stopping.wait(RETRY_S):
                    raise Stopping

    def is_settled(self) -> bool:
        """Whether nothing needs to be done, as far as the ledger answers. Raises Superseded."""
        try:
            with self._engine.begin() as connection:
                return self._state(connection) in USABLE
        except SQLAlchemyError:
            return True

    def _check_clock(self) -> None:
        off = clock_off(self._reports.persist("clock", queue.database_time))
        if off is not None:
            event("clock.off", device=self._who.device_id, **off)

    def _state(self, connection: Connection) -> DeviceState:
        record = queries.device(connection, self._who.device_id)
        if record is None:
            # The ledger was emptied under us.
            return queue.register_device(connection, self._device, self._who.boot_id)
        if record.boot_id != self._who.boot_id:
            raise Superseded(f"device {self._who.device_id} is now spoken for by boot {record.boot_id}")
        return record.state

    def _pass(self, state: DeviceState) -> None:
        who = self._who
        if state is DeviceState.RELEASING:
            self._reports.persist("release", lambda c: queue.release(c, who.device_id, who.boot_id))
        else:
            described = Fingerprint(hardware=self._device.hardware, software=software(Environment()))
            limits = ceiling(self._device, self._settings, described)
            self._reports.persist("attest", lambda c: queue.attest(c, who.device_id, who.boot_id, limits, described))
        self._reason = None
        event("device.attested", device=who.device_id, boot=who.boot_id, was=state)

    def _refuse(self, reason: str) -> None:
        who = self._who
        if reason != self._reason:
            self._reports.persist("quarantine", lambda c: queue.quarantine(c, who.device_id, who.boot_id, reason))
            event("device.quarantined", device=who.device_id, boot=who.boot_id, why=reason)
            self._reason = reason
