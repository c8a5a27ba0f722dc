"""The worker actor: one per device, measures what it is given and outlives the fleet. Imports no Ray; `fleet.pool` wraps it."""

from __future__ import annotations

import os
import queue as inbox
import threading
import traceback
import uuid
from collections import deque
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine

from effillm_server.contract.fingerprint import DeviceDeclaration
from effillm_server.contract.job import Lease
from effillm_server.contract.outcome import Cancelled, ChildRecord, Fault, FaultKind, Outcome
from effillm_server.errors import BadInput, NotFound
from effillm_server.ledger import queue
from effillm_server.ledger.engine import connect
from effillm_server.settings import Settings
from effillm_worker.attestation import Attestation, Superseded
from effillm_worker.bench import Bench
from effillm_worker.log import event
from effillm_worker.node import own_declarations
from effillm_worker.renewal import Renewal
from effillm_worker.reports import Identity, Reports, Stopping
from effillm_worker.spool import Spool

# How often an idle lane looks whether the ledger and it agree about the device.
IDLE_CHECK_S = 2.0
AFTER_ERROR_S = 1.0
DELIVERED_REMEMBERED = 64


@dataclass(frozen=True)
class _Progress:
    phase: str
    iteration: int
    at_most: int


class WorkerActor:
    """Runs leases on one device. `start` returns at once, `status` always answers."""

    def __init__(
        self, device_id: str, settings: Settings | None = None, declaration: DeviceDeclaration | None = None
    ) -> None:
        self._settings = settings or Settings.from_environment()
        self._device = declaration or _declared_here(device_id)
        if not self._settings.database_url:
            raise BadInput("EFFILLM_DATABASE_URL is not set on this node")
        self._who = Identity(device_id, uuid.uuid4().hex)
        self._engine: Engine = connect(self._settings.database_url, "worker")
        self._stopping = threading.Event()
        self._inbox: inbox.SimpleQueue[Lease | None] = inbox.SimpleQueue()
        self._guard = threading.Lock()
        self._lease: Lease | None = None
        # A fleet's call may arrive when its lease has long been delivered; measured again it would only be refused.
        self._delivered: deque[tuple[int, int]] = deque(maxlen=DELIVERED_REMEMBERED)
        self._phase = "starting"
        self._progress: _Progress | None = None
        spool = Spool(self._settings.data_dir / "spool" / device_id)
        self._reports = Reports(self._engine, spool, self._who, self._stopping)
        self._bench = Bench(self._device, self._settings, self._record_child, self._note_progress)
        self._attestation = Attestation(
            self._device, self._settings, self._engine, self._who, self._reports, self._stopping
        )
        self._renewal = Renewal(self._engine, self._who, self._settings.lease_ttl_s, self._held, self._bench.cancel)
        # One thread for all leases, and never replaced: the kernel ends a child when the thread that forked it ends.
        self._lane = threading.Thread(target=self._run, name="lane", daemon=True)
        self._lane.start()
        self._renewal.start()
        event("actor.start", device=device_id, boot=self._who.boot_id, pid=os.getpid())

    def start(self, lease: dict[str, Any]) -> bool:
        """Take a lease (as JSON) and return. The lease already held is taken as a repeat.

        False: busy with another one, done with this one, or superseded.
        """
        wanted = Lease.model_validate(lease)
        if not self._lane.is_alive():
            return False
        with self._guard:
            if (wanted.job_id, wanted.fence) in self._delivered:
                return False
            held = self._lease
            if held is None:
                self._lease = wanted
                self._inbox.put(wanted)
                return True
            return (held.job_id, held.fence) == (wanted.job_id, wanted.fence)

    def status(self) -> dict[str, Any]:
        """Who this is and what it is doing."""
        lease, held, progress = self._lease, self._bench.held, self._progress
        return {
            "device_id": self._who.device_id,
            "boot_id": self._who.boot_id,
            "pid": os.getpid(),
            "phase": self._phase,
            "job_id": None if lease is None else lease.job_id,
            "fence": None if lease is None else lease.fence,
            "group": None if held is None else held[0],
            "group_since": None if held is None else held[1],
            "progress": None if lease is None or progress is None else vars(progress),
        }

    def check(self) -> None:
        """Look at once whether the held lease still stands: the fleet knows that it was cancelled."""
        self._renewal.now()

    def stop(self) -> None:
        """End the child and both threads; what the ledger has not taken stays in the spool."""
        self._stopping.set()
        self._renewal.stop()
        for held in self._held():
            self._bench.cancel(*held)
        self._inbox.put(None)
        self._lane.join()
        self._renewal.join()
        self._engine.dispose()

    def _run(self) -> None:
        """The lane: settle with the ledger, wait for a lease, measure until no next one comes."""
        while not self._stopping.is_set():
            try:
                self._settle()
                self._phase = "idle"
                lease = self._wait()
                while lease is not None:
                    lease = self._serve(lease)
                self._bench.put_away()
            except Stopping:
                break
            except Superseded as superseded:
                event("actor.superseded", device=self._who.device_id, why=str(superseded))
                self._phase = "superseded"
                break
            except Exception:  # noqa: BLE001 - the lane is the edge: whatever broke, the next lease gets a new try
                event("lane.error", device=self._who.device_id, error=traceback.format_exc())
                self._forget_lease()
                self._stopping.wait(AFTER_ERROR_S)
        self._bench.discard()

    def _settle(self) -> None:
        """Replay what is spooled and attest, until the ledger counts this device among the usable ones."""
        self._phase = "settling"
        self._reports.replay()
        self._attestation.settle()

    def _wait(self) -> Lease | None:
        """The next lease; None when the ledger's view of the device asks for settling first."""
        while not self._stopping.is_set():
            try:
                return self._inbox.get(timeout=IDLE_CHECK_S)
            except inbox.Empty:
                if not self._attestation.is_settled():
                    return None
        return None

    def _serve(self, lease: Lease) -> Lease | None:
        """Measure and deliver one lease; the next one, if the ledger gave one with it."""
        self._phase = "measuring"
        outcome = self._outcome(lease)
        if self._stopping.is_set() and isinstance(outcome, Cancelled):
            raise Stopping  # ended by us, not by the job's owner: the lease runs out and the job is tried again
        self._phase = "delivering"
        follows = not isinstance(outcome, Cancelled)
        finished = self._reports.deliver(lease, outcome, self._request() if follows else None)
        event(
            "cell.end", job=lease.job_id, fence=lease.fence, device=self._who.device_id, outcome=outcome.kind,
            accepted=finished.accepted, why_not=finished.why_not, state=finished.state,
        )  # fmt: skip
        with self._guard:
            self._lease = finished.next
            self._delivered.append((lease.job_id, lease.fence))
        self._progress = None
        if finished.next is None and not (finished.accepted and follows):
            # Cancelled or superseded: the ledger holds the device back until it is attested.
            self._bench.discard()
            self._settle()
        return finished.next

    def _outcome(self, lease: Lease) -> Outcome:
        try:
            return self._bench.measure(lease)
        except Stopping:
            raise
        except Exception as error:  # noqa: BLE001 - a job must not wait for its time-out because of our mistake
            event("cell.error", job=lease.job_id, fence=lease.fence, error=traceback.format_exc())
            self._bench.discard()
            return Fault(fault=FaultKind.CRASHED, message=f"{type(error).__name__} beside the child: {error}")

    def _request(self) -> queue.LeaseRequest:
        held = self._bench.held
        return queue.LeaseRequest(
            device_id=self._who.device_id,
            boot_id=self._who.boot_id,
            ttl_s=self._settings.lease_ttl_s,
            group_max_age_s=self._settings.group_max_age_s,
            held_group=None if held is None else held[0],
            held_since=None if held is None else held[1],
        )

    def _record_child(self, record: ChildRecord) -> None:
        who = self._who
        self._reports.persist("record_child", lambda c: queue.record_child(c, who.device_id, who.boot_id, record))

    def _note_progress(self, progress: Any) -> None:
        self._progress = _Progress(progress.phase, progress.iteration, progress.at_most)

    def _held(self) -> tuple[tuple[int, int], ...]:
        lease = self._lease
        return () if lease is None else ((lease.job_id, lease.fence),)

    def _forget_lease(self) -> None:
        with self._guard:
            self._lease = None


def _declared_here(device_id: str) -> DeviceDeclaration:
    devices = {device.id: device for device in own_declarations()}
    if device_id not in devices:
        raise NotFound(f"this node does not offer device {device_id}: it offers {', '.join(devices) or 'none'}")
    return devices[device_id]
