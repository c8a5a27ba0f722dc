"""A device is free only because its own actor attested it."""

from __future__ import annotations

import pytest
from sqlalchemy import Connection, Engine

from effillm_server.errors import NotFound
from effillm_server.ledger import queries, queue
from effillm_server.lifecycle import DeviceState, JobState
from effillm_server.records import DeviceRecord
from tests.support.ledger import (
    BOOT,
    cell,
    crashed,
    declaration,
    fingerprint,
    join,
    leased,
    measured,
    request,
    skip_backoff,
    submit,
)


def _device(c: Connection, device_id: str = "box-cpu0") -> DeviceRecord:
    found = queries.device(c, device_id)
    assert found is not None
    return found


def test_a_new_device_waits_for_its_attestation(engine: Engine) -> None:
    with engine.begin() as c:
        assert queue.register_device(c, declaration(), BOOT) is DeviceState.QUARANTINED
        assert _device(c).reason == "not attested yet"
        submit(c, cell())
        assert queue.lease(c, request()) is None
        assert queue.attest(c, "box-cpu0", BOOT, {"copy_bytes_s": 1e10}, fingerprint())
        device = _device(c)
    assert (device.state, device.reason, device.ceiling) == (DeviceState.FREE, None, {"copy_bytes_s": 1e10})
    assert device.fingerprint_digest == fingerprint().digest


def test_the_same_boot_announces_itself_again_without_consequence(engine: Engine) -> None:
    with engine.begin() as c:
        join(c)
        submit(c, cell())
        assert queue.register_device(c, declaration(), BOOT) is DeviceState.FREE
        leased(c)
        assert queue.register_device(c, declaration(), BOOT) is DeviceState.LEASED
        assert len(queries.devices(c)) == 1


def test_a_new_boot_is_quarantined_and_what_the_old_one_held_goes_back(engine: Engine) -> None:
    with engine.begin() as c:
        join(c)
        submit(c, cell())
        lease = leased(c)
        assert queue.register_device(c, declaration(), "boot-2") is DeviceState.QUARANTINED
        job = queries.job(c, lease.job_id)
        assert not queue.attest(c, "box-cpu0", "boot-1", None, None)
        assert queue.attest(c, "box-cpu0", "boot-2", None, None)
        assert _device(c).state is DeviceState.FREE
        skip_backoff(c)
        assert leased(c, boot_id="boot-2").fence == 2
    assert job is not None
    assert (job.state, job.reason) == (JobState.PENDING, "lost")


def test_an_attestation_keeps_the_ceiling_it_does_not_bring(engine: Engine) -> None:
    with engine.begin() as c:
        join(c)
        queue.attest(c, "box-cpu0", BOOT, {"a": 1}, None)
        queue.attest(c, "box-cpu0", BOOT, None, None)
        assert _device(c).ceiling == {"a": 1}


def test_a_leased_device_cannot_attest_itself_free(engine: Engine) -> None:
    with engine.begin() as c:
        join(c)
        submit(c, cell())
        leased(c)
        assert not queue.attest(c, "box-cpu0", BOOT, None, None)
        assert _device(c).state is DeviceState.LEASED


def test_a_device_with_a_foreign_process_is_quarantined_with_the_reason(engine: Engine) -> None:
    with engine.begin() as c:
        join(c)
        assert queue.quarantine(c, "box-cpu0", BOOT, "process 42 (python) is on it")
        assert (_device(c).state, _device(c).reason) == (DeviceState.QUARANTINED, "process 42 (python) is on it")
        assert not queue.quarantine(c, "box-cpu0", "boot-0", "whatever")


def test_quarantine_takes_the_lease_back(engine: Engine) -> None:
    with engine.begin() as c:
        join(c)
        submit(c, cell())
        lease = leased(c)
        assert queue.quarantine(c, "box-cpu0", BOOT, "memory is not at baseline")
        job = queries.job(c, lease.job_id)
        assert (_device(c).state, _device(c).job_id) == (DeviceState.QUARANTINED, None)
    assert job is not None
    assert (job.state, job.message) == (JobState.PENDING, "device box-cpu0: memory is not at baseline")


def test_a_lost_node_gives_its_job_back_at_once(engine: Engine) -> None:
    with engine.begin() as c:
        join(c)
        submit(c, cell())
        lease = leased(c)
        assert queue.mark_lost(c, "box-cpu0", "node box left the cluster")
        assert not queue.mark_lost(c, "box-cpu0", "node box left the cluster")
        job = queries.job(c, lease.job_id)
        assert (_device(c).state, _device(c).reason) == (DeviceState.LOST, "node box left the cluster")
    assert job is not None
    assert (job.state, job.faults) == (JobState.PENDING, 1)


def test_a_released_device_is_free_and_only_then(engine: Engine) -> None:
    with engine.begin() as c:
        join(c)
        submit(c, cell())
        lease = leased(c)
        assert not queue.release(c, "box-cpu0", BOOT)
        queue.cancel_job(c, lease.job_id)
        assert _device(c).state is DeviceState.RELEASING
        assert not queue.release(c, "box-cpu0", "boot-0")
        assert queue.release(c, "box-cpu0", BOOT)
        assert _device(c).state is DeviceState.FREE


def test_a_draining_device_finishes_its_job_and_takes_no_other(engine: Engine) -> None:
    with engine.begin() as c:
        join(c)
        submit(c, cell(), cell(batch_size=2))
        lease = leased(c)
        assert queue.drain(c, "box-cpu0") is DeviceState.LEASED
        assert _device(c).reason == "draining: takes no further job"
        finished = queue.finish(c, "box-cpu0", BOOT, lease.job_id, 1, measured(), 0.5, request())
        assert (finished.accepted, finished.next) == (True, None)
        assert (_device(c).state, _device(c).reason) == (DeviceState.DRAINING, "drained")
        assert queue.undrain(c, "box-cpu0") is DeviceState.FREE
        assert leased(c).cell.batch_size == 2


def test_draining_survives_a_cancelled_job_a_new_boot_and_an_attestation(engine: Engine) -> None:
    with engine.begin() as c:
        join(c)
        submit(c, cell())
        lease = leased(c)
        queue.drain(c, "box-cpu0")
        queue.cancel_job(c, lease.job_id)
        queue.release(c, "box-cpu0", BOOT)
        assert _device(c).state is DeviceState.DRAINING
        assert queue.register_device(c, declaration(), "boot-2") is DeviceState.QUARANTINED
        queue.attest(c, "box-cpu0", "boot-2", None, None)
        assert _device(c).state is DeviceState.DRAINING


def test_an_unknown_device_cannot_be_drained(engine: Engine) -> None:
    with engine.begin() as c:
        for act in (queue.drain, queue.undrain):
            with pytest.raises(NotFound, match="no device 'nix'"):
                act(c, "nix")


def test_only_the_registered_boot_is_heard(engine: Engine) -> None:
    with engine.begin() as c:
        join(c)
        assert queue.heartbeat(c, "box-cpu0", BOOT)
        assert not queue.heartbeat(c, "box-cpu0", "boot-0")
        assert not queue.heartbeat(c, "nix", BOOT)


def test_a_fault_leaves_the_device_free_for_another_job(engine: Engine) -> None:
    with engine.begin() as c:
        join(c)
        submit(c, cell(), cell(batch_size=2))
        lease = leased(c)
        finished = queue.finish(c, "box-cpu0", BOOT, lease.job_id, 1, crashed(), 0.5, request())
    assert finished.next is not None
    assert finished.next.job_id != lease.job_id
