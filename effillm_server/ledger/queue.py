"""Every write to the ledger. The first argument is a connection; the caller owns the transaction and commits it.

`expand` cells go in by `enqueue`; a device's actor goes round `lease`, `renew`, `finish`; `reap` takes back what nobody
renews. Each function says whether it hit. Locks are taken in the order sweep, job, device, counters.
"""

from __future__ import annotations

from effillm_server.ledger.claim import LeaseRequest, lease
from effillm_server.ledger.devices import (
    attest,
    drain,
    heartbeat,
    mark_lost,
    quarantine,
    record_child,
    register_device,
    release,
    undrain,
)
from effillm_server.ledger.enqueue import NewSweep, Planned, enqueue, new_sweep_id
from effillm_server.ledger.finish import finish
from effillm_server.ledger.jobs import cancel_job, retry_job
from effillm_server.ledger.journal import CHANNEL
from effillm_server.ledger.leases import database_time, reap, renew
from effillm_server.ledger.sweeps import cancel_sweep, retry_sweep

__all__ = [
    "CHANNEL",
    "LeaseRequest",
    "NewSweep",
    "Planned",
    "attest",
    "cancel_job",
    "cancel_sweep",
    "database_time",
    "drain",
    "enqueue",
    "finish",
    "heartbeat",
    "lease",
    "mark_lost",
    "new_sweep_id",
    "quarantine",
    "reap",
    "record_child",
    "register_device",
    "release",
    "renew",
    "retry_job",
    "retry_sweep",
    "undrain",
]
