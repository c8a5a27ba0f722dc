"""Leases while they run: renewed by their holder, reaped when nobody does."""

from __future__ import annotations

import math
from datetime import timedelta

import pytest
from sqlalchemy import Engine, text

from effillm_server.ledger import queries, queue
from effillm_server.lifecycle import DeviceState, JobState
from effillm_server.records import Renewal
from tests.support.ledger import BOOT, cell, crashed, expire, join, leased, request, skip_backoff, submit


def _half() -> float:
    return 0.5


def test_a_renewal_moves_the_end_by_the_databases_clock(engine: Engine) -> None:
    with engine.begin() as c:
        join(c)
        submit(c, cell())
        lease = leased(c, ttl_s=1.0)
        renewal = queue.renew(c, "box-cpu0", BOOT, [(lease.job_id, lease.fence)], 60.0)
        left = c.execute(text("SELECT lease_expires_at - clock_timestamp() FROM job")).scalar_one()
    assert renewal == Renewal(kept=((lease.job_id, 1),), to_cancel=(), lost=())
    assert timedelta(seconds=55) < left <= timedelta(seconds=60)


def test_a_renewal_without_leases_is_a_sign_of_life(engine: Engine) -> None:
    with engine.begin() as c:
        join(c)
        c.execute(text("UPDATE device SET last_seen = NULL"))
        assert queue.renew(c, "box-cpu0", BOOT, [], 60.0) == Renewal((), (), ())
        device = queries.device(c, "box-cpu0")
    assert device is not None
    assert device.last_seen is not None


def test_a_renewal_tells_cancelled_from_lost(engine: Engine) -> None:
    with engine.begin() as c:
        join(c)
        submit(c, cell())
        lease = leased(c)
        queue.cancel_job(c, lease.job_id)
        held = [(lease.job_id, lease.fence), (lease.job_id, 9), (12345, 1)]
        renewal = queue.renew(c, "box-cpu0", BOOT, held, 60.0)
    assert renewal.to_cancel == ((lease.job_id, 1),)
    assert sorted(renewal.lost) == [(lease.job_id, 9), (12345, 1)]


def test_an_older_fence_of_a_job_that_is_held_again_is_lost(engine: Engine) -> None:
    with engine.begin() as c:
        join(c)
        submit(c, cell())
        lease = leased(c)
        renewal = queue.renew(c, "box-cpu0", BOOT, [(lease.job_id, 0), (lease.job_id, lease.fence)], 60.0)
    assert renewal == Renewal(kept=((lease.job_id, lease.fence),), to_cancel=(), lost=((lease.job_id, 0),))


def test_another_boot_or_device_cannot_renew(engine: Engine) -> None:
    with engine.begin() as c:
        join(c)
        join(c, "other")
        submit(c, cell())
        lease = leased(c)
        held = [(lease.job_id, lease.fence)]
        assert queue.renew(c, "box-cpu0", "boot-0", held, 60.0).lost == tuple(held)
        assert queue.renew(c, "other", BOOT, held, 60.0).lost == tuple(held)


def test_a_renewal_by_one_who_does_not_hold_the_lease_changes_nothing_and_is_counted(engine: Engine) -> None:
    with engine.begin() as c:
        join(c)
        join(c, "other")
        submit(c, cell())
        lease = leased(c)
        wrong = [(lease.job_id, lease.fence + 1), (12345, 1)]
        before = queries.job(c, lease.job_id), c.execute(text("SELECT lease_expires_at FROM job")).scalar_one()
        for _ in range(2):
            assert queue.renew(c, "box-cpu0", BOOT, wrong, 60.0).lost == tuple(sorted(wrong))
        assert queue.renew(c, "other", BOOT, [(lease.job_id, lease.fence)], 60.0).kept == ()
        after = queries.job(c, lease.job_id), c.execute(text("SELECT lease_expires_at FROM job")).scalar_one()
        counts = queries.counts(c)
        why = set(c.execute(text("SELECT why FROM rejected_outcome")).scalars())
    assert before == after
    assert (counts.rejected_renewals, counts.rejected_outcomes) == (5, 0)
    assert why == {"a renewal by one who does not hold the lease"}


def test_a_renewal_that_crosses_its_own_report_is_not_counted(engine: Engine) -> None:
    with engine.begin() as c:
        join(c)
        submit(c, cell())
        lease = leased(c)
        queue.finish(c, "box-cpu0", BOOT, lease.job_id, lease.fence, crashed())
        held = [(lease.job_id, lease.fence)]
        assert queue.renew(c, "box-cpu0", BOOT, held, 60.0).lost == tuple(held)
        assert queries.counts(c).rejected_renewals == 0
        queue.renew(c, "box-cpu0", "boot-0", held, 60.0)
        assert queries.counts(c).rejected_renewals == 1


@pytest.mark.parametrize("ttl_s", [0.0, -1.0, math.nan, math.inf])
def test_a_time_to_live_that_is_none_is_refused_and_nothing_moves(engine: Engine, ttl_s: float) -> None:
    with engine.begin() as c:
        join(c)
        submit(c, cell())
        with pytest.raises(ValueError, match=r"finite time above 0 s, found "):
            queue.lease(c, request(ttl_s=ttl_s))
        lease = leased(c)
        before = queries.job(c, lease.job_id), c.execute(text("SELECT lease_expires_at FROM job")).scalar_one()
        with pytest.raises(ValueError, match=r"finite time above 0 s, found "):
            queue.renew(c, "box-cpu0", BOOT, [(lease.job_id, lease.fence)], ttl_s)
        after = queries.job(c, lease.job_id), c.execute(text("SELECT lease_expires_at FROM job")).scalar_one()
    assert before == after


def test_an_expired_lease_goes_back_with_a_fault_and_its_device_is_lost(engine: Engine) -> None:
    with engine.begin() as c:
        join(c)
        submit(c, cell())
        lease = leased(c)
        expire(c, lease.job_id)
        assert queue.reap(c, _half) == [(lease.job_id, 1)]
        job, device, attempt = (
            queries.job(c, lease.job_id), queries.device(c, "box-cpu0"), queries.attempts(c, lease.job_id)[0]
        )  # fmt: skip
        wait = c.execute(
            text("SELECT not_before - finished FROM job, (SELECT clock_timestamp() AS finished) t")
        ).scalar_one()
    assert job is not None
    assert device is not None
    assert (job.state, job.reason, job.faults) == (JobState.PENDING, "lost", 1)
    assert (device.state, device.job_id) == (DeviceState.LOST, None)
    assert (attempt.outcome, attempt.reason) == ("fault", "lost")
    assert timedelta() < wait <= timedelta(seconds=2)


def test_a_lease_that_is_renewed_is_not_reaped(engine: Engine) -> None:
    with engine.begin() as c:
        join(c)
        submit(c, cell())
        lease = leased(c)
        expire(c, lease.job_id)
        queue.renew(c, "box-cpu0", BOOT, [(lease.job_id, 1)], 60.0)
        assert queue.reap(c, _half) == []


def test_nothing_is_reaped_before_the_moment_the_reaper_names(engine: Engine) -> None:
    with engine.begin() as c:
        join(c)
        submit(c, cell())
        lease = leased(c)
        expire(c, lease.job_id)
        now = queue.database_time(c)
        assert queue.reap(c, _half, not_before=now + timedelta(minutes=1)) == []
        assert queue.reap(c, _half, not_before=now) == [(lease.job_id, 1)]


def test_nothing_is_reaped_within_one_time_to_live_of_the_databases_start(engine: Engine) -> None:
    with engine.begin() as c:
        join(c)
        submit(c, cell())
        lease = leased(c)
        # Longer than this database can have been up.
        c.execute(text("UPDATE job SET lease_expires_at = clock_timestamp() - interval '1 s', lease_ttl_s = 1e6"))
        assert queue.reap(c, _half) == []
        expire(c, lease.job_id)
        assert queue.reap(c, _half) == [(lease.job_id, 1)]


def test_a_job_whose_node_dies_every_time_is_given_up_and_says_why(engine: Engine) -> None:
    with engine.begin() as c:
        for n in range(3):
            join(c, f"device-{n}")
        submit(c, cell())
        for n in range(3):
            lease = leased(c, f"device-{n}")
            expire(c, lease.job_id)
            queue.reap(c, _half)
            skip_backoff(c)
        job = queries.job(c, lease.job_id)
        explanation = queries.explain(c, lease.job_id)
    assert job is not None
    assert job.state is JobState.FAILED
    assert explanation == (
        "failed (lost): given up after 3 attempts; the last one: device device-2: the lease expired without renewal"
    )


def test_two_reapers_at_once_take_each_lease_back_once(engine: Engine) -> None:
    with engine.begin() as c:
        join(c)
        submit(c, cell())
        lease = leased(c)
        expire(c, lease.job_id)
    with engine.connect() as one, engine.connect() as two:
        assert queue.reap(one, _half) == [(lease.job_id, 1)]
        assert queue.reap(two, _half) == []
        one.commit()
    with engine.connect() as c:
        job = queries.job(c, lease.job_id)
    assert job is not None
    assert job.faults == 1


def test_a_renewal_changes_no_index(engine: Engine) -> None:
    with engine.begin() as c:
        join(c)
        submit(c, cell())
        lease = leased(c)
    before = _updates_of_job(engine)
    for _ in range(20):
        with engine.begin() as c:
            queue.renew(c, "box-cpu0", BOOT, [(lease.job_id, 1)], 60.0)
    after = _updates_of_job(engine)
    assert after[0] - before[0] == 20
    assert after[1] - before[1] == 20


def _updates_of_job(engine: Engine) -> tuple[int, int]:
    """(all, heap-only) updates of the job table so far. The engine's one connection is asked to report what it did."""
    with engine.begin() as c:
        c.execute(text("SELECT pg_stat_force_next_flush()"))
    with engine.begin() as c:
        row = c.execute(text("SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'job'")).one()
    return row.n_tup_upd, row.n_tup_hot_upd


def test_the_device_asks_again_after_its_lease_was_reaped_and_gets_nothing(engine: Engine) -> None:
    with engine.begin() as c:
        join(c)
        submit(c, cell(), cell(batch_size=2))
        lease = leased(c)
        expire(c, lease.job_id)
        queue.reap(c, _half)
        assert queue.lease(c, request()) is None
        assert queue.attest(c, "box-cpu0", BOOT, None, None)
        assert leased(c).fence == 1
