"""Whole sweeps and single jobs cancelled and retried by users."""

from __future__ import annotations

import pytest
from sqlalchemy import Engine, text

from effillm_server.contract.outcome import Cancelled, Exit
from effillm_server.errors import Conflict, NotFound
from effillm_server.ledger import queries, queue
from effillm_server.lifecycle import DeviceState, JobState, SweepState
from tests.support.ledger import BOOT, cell, crashed, expire, join, leased, measured, out_of_memory, request, submit


def test_cancelling_a_sweep_ends_what_waits_and_what_runs(engine: Engine) -> None:
    with engine.begin() as c:
        join(c)
        sweep_id = submit(c, *(cell(batch_size=b) for b in (1, 2, 3)))
        lease = leased(c)
    with engine.begin() as c:
        assert queue.cancel_sweep(c, sweep_id) == 3
    with engine.connect() as c:
        sweep, device = queries.sweep(c, sweep_id), queries.device(c, "box-cpu0")
        kinds = [event.kind for event in queries.events(c, 0, 100, sweep_id)]
    assert sweep is not None
    assert device is not None
    assert (sweep.state, sweep.counts[JobState.CANCELLED]) == (SweepState.CANCELLED, 3)
    assert None not in (sweep.cancelled_at, sweep.finished_at)
    assert device.state is DeviceState.RELEASING
    assert kinds[-2:] == ["sweep_cancelled", "sweep_finished"]
    with engine.begin() as c:
        assert queue.renew(c, "box-cpu0", BOOT, [(lease.job_id, 1)], 60).to_cancel == ((lease.job_id, 1),)


def test_cancelling_twice_or_too_late_changes_nothing(engine: Engine) -> None:
    with engine.begin() as c:
        join(c)
        cancelled, done = submit(c, cell(), priority=-1), submit(c, cell())
        lease = leased(c)
        queue.finish(c, "box-cpu0", BOOT, lease.job_id, 1, measured())
        assert queue.cancel_sweep(c, cancelled) == 1
        events = c.execute(text("SELECT count(*) FROM event")).scalar_one()
        before = [queries.sweep(c, sweep) for sweep in (cancelled, done)]
        assert [queue.cancel_sweep(c, sweep) for sweep in (cancelled, done)] == [0, 0]
        after = [queries.sweep(c, sweep) for sweep in (cancelled, done)]
        assert c.execute(text("SELECT count(*) FROM event")).scalar_one() == events
    assert before == after
    assert [sweep.state for sweep in after if sweep] == [SweepState.CANCELLED, SweepState.FINISHED]


def test_cancelling_a_sweep_keeps_what_has_been_measured(engine: Engine) -> None:
    with engine.begin() as c:
        join(c)
        sweep_id = submit(c, cell(), cell(batch_size=2))
        lease = leased(c)
        queue.finish(c, "box-cpu0", BOOT, lease.job_id, 1, measured())
        assert queue.cancel_sweep(c, sweep_id) == 1
        assert queue.cancel_sweep(c, sweep_id) == 0
        sweep = queries.sweep(c, sweep_id)
    assert sweep is not None
    assert (sweep.counts[JobState.MEASURED], sweep.counts[JobState.CANCELLED]) == (1, 1)


def test_more_jobs_than_one_statement_moves_are_all_cancelled_and_retried(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("effillm_server.ledger.sweeps.CHUNK", 3)
    with engine.begin() as c:
        sweep_id = submit(c, *(cell(batch_size=b) for b in range(1, 11)))
        assert queue.cancel_sweep(c, sweep_id) == 10
        assert queue.retry_sweep(c, sweep_id) == 10


def test_the_actors_word_on_a_cancelled_job_is_taken_and_a_measurement_is_not(engine: Engine) -> None:
    with engine.begin() as c:
        join(c)
        submit(c, cell())
        lease = leased(c)
        queue.cancel_job(c, lease.job_id)
        refused = queue.finish(c, "box-cpu0", BOOT, lease.job_id, 1, measured())
        taken = queue.finish(c, "box-cpu0", BOOT, lease.job_id, 1, Cancelled(exit=Exit(signal="SIGKILL")))
        attempt = queries.attempts(c, lease.job_id)[0]
    assert (refused.accepted, refused.why_not) == (False, "the job was cancelled while this attempt ran")
    assert (taken.accepted, taken.state, attempt.signal) == (True, JobState.CANCELLED, "SIGKILL")


def test_a_cancelled_job_that_was_retried_does_not_take_the_old_measurement(engine: Engine) -> None:
    with engine.begin() as c:
        join(c)
        submit(c, cell())
        lease = leased(c)
        queue.cancel_job(c, lease.job_id)
        queue.retry_job(c, lease.job_id)
        assert not queue.finish(c, "box-cpu0", BOOT, lease.job_id, 1, measured()).accepted
        job = queries.job(c, lease.job_id)
    assert job is not None
    assert job.state is JobState.PENDING


def test_a_pending_job_is_cancelled_once(engine: Engine) -> None:
    with engine.begin() as c:
        sweep_id = submit(c, cell())
        job = queries.jobs(c, sweep_id, None, 1)[0]
        assert queue.cancel_job(c, job.id) is JobState.CANCELLED
        assert queue.cancel_job(c, job.id) is JobState.CANCELLED
        sweep = queries.sweep(c, sweep_id)
    assert sweep is not None
    assert sweep.counts[JobState.CANCELLED] == 1
    assert sweep.finished_at is not None


def test_what_has_ended_otherwise_cannot_be_cancelled(engine: Engine) -> None:
    with engine.begin() as c:
        join(c)
        submit(c, cell())
        lease = leased(c)
        queue.finish(c, "box-cpu0", BOOT, lease.job_id, 1, measured())
        with pytest.raises(Conflict, match="measured already"):
            queue.cancel_job(c, lease.job_id)


def test_retrying_a_sweep_takes_the_failed_and_cancelled_and_leaves_the_answers(engine: Engine) -> None:
    with engine.begin() as c:
        join(c)
        sweep_id = submit(c, *(cell(batch_size=b) for b in (1, 2, 3, 4)))
        lease = leased(c)
        queue.finish(c, "box-cpu0", BOOT, lease.job_id, 1, measured())
        c.execute(text("UPDATE job SET faults = 2 WHERE ordinal = 1"))
        lease = leased(c)
        queue.finish(c, "box-cpu0", BOOT, lease.job_id, 1, crashed())
        lease = leased(c)
        queue.finish(c, "box-cpu0", BOOT, lease.job_id, 1, out_of_memory())
        queue.cancel_sweep(c, sweep_id)
        ended = queries.sweep(c, sweep_id)
        retried = queue.retry_sweep(c, sweep_id)
        sweep, failed = queries.sweep(c, sweep_id), queries.jobs(c, sweep_id, 0, 1)[0]
    assert ended is not None
    assert sweep is not None
    before = ended.counts
    assert retried == before[JobState.FAILED] + before[JobState.CANCELLED] == 1
    assert (sweep.counts[JobState.MEASURED], sweep.counts[JobState.INFEASIBLE]) == (1, 2)
    assert (sweep.state, sweep.cancelled_at, sweep.finished_at) == (SweepState.RUNNING, None, None)
    assert (failed.state, failed.faults) == (JobState.PENDING, 0)


def test_a_measured_job_keeps_its_result_until_it_is_measured_again(engine: Engine) -> None:
    with engine.begin() as c:
        join(c)
        submit(c, cell())
        lease = leased(c)
        queue.finish(c, "box-cpu0", BOOT, lease.job_id, 1, measured())
        assert queue.retry_job(c, lease.job_id) is JobState.PENDING
        between = queries.result(c, lease.job_id)
        again = leased(c)
        queue.finish(c, "box-cpu0", BOOT, again.job_id, again.fence, measured(energy_j=1.0))
        after = queries.result(c, lease.job_id)
    assert between is not None
    assert after is not None
    assert (between.fence, after.fence) == (1, 2)


@pytest.mark.parametrize("act", [queue.retry_job, queue.cancel_job])
def test_an_unknown_job_is_not_found(engine: Engine, act: object) -> None:
    with engine.begin() as c, pytest.raises(NotFound, match="no job 404"):
        act(c, 404)  # type: ignore[operator]


@pytest.mark.parametrize("act", [queue.retry_sweep, queue.cancel_sweep])
def test_an_unknown_sweep_is_not_found(engine: Engine, act: object) -> None:
    with engine.begin() as c, pytest.raises(NotFound, match="no sweep 'nix'"):
        act(c, "nix")  # type: ignore[operator]


def test_what_has_not_ended_or_is_an_answer_cannot_be_retried_and_stays_as_it_is(engine: Engine) -> None:
    with engine.begin() as c:
        join(c)
        sweep_id = submit(c, cell())
        (waiting,) = queries.jobs(c, sweep_id, None, 10)
        with pytest.raises(Conflict, match="is pending: only a job that is cancelled, failed, measured"):
            queue.retry_job(c, waiting.id)
        assert queries.job(c, waiting.id) == waiting
        lease = leased(c)
        with pytest.raises(Conflict, match="leased"):
            queue.retry_job(c, lease.job_id)
        queue.finish(c, "box-cpu0", BOOT, lease.job_id, 1, out_of_memory())
        with pytest.raises(Conflict, match="infeasible"):
            queue.retry_job(c, lease.job_id)


def test_a_retried_sweep_is_measured_and_ends_again(engine: Engine) -> None:
    with engine.begin() as c:
        join(c)
        sweep_id = submit(c, cell())
        queue.cancel_sweep(c, sweep_id)
        queue.retry_sweep(c, sweep_id)
        lease = leased(c)
        queue.finish(c, "box-cpu0", BOOT, lease.job_id, lease.fence, measured())
        sweep = queries.sweep(c, sweep_id)
    assert sweep is not None
    assert (sweep.state, sweep.finished_at is not None) == (SweepState.FINISHED, True)


def test_counters_agree_with_the_jobs_after_all_of_it(engine: Engine) -> None:
    with engine.begin() as c:
        join(c)
        sweep_id = submit(c, *(cell(batch_size=b) for b in range(1, 7)))
        for outcome in (measured(), crashed(), out_of_memory(warm=True)):
            lease = leased(c)
            queue.finish(c, "box-cpu0", BOOT, lease.job_id, lease.fence, outcome)
        lease = leased(c)
        expire(c, lease.job_id)
        queue.reap(c, lambda: 0.5)
        queue.cancel_sweep(c, sweep_id)
        queue.retry_sweep(c, sweep_id)
        assert queue.lease(c, request()) is None
        sweep = queries.sweep(c, sweep_id)
        rows = c.execute(text("SELECT state, count(*) AS jobs FROM job GROUP BY state"))
        live = {row.state: row.jobs for row in rows}
        balance = c.execute(text("SELECT sum(leased_since_ms) FROM sweep_counter")).scalar_one()
    assert sweep is not None
    assert {str(state): n for state, n in sweep.counts.items() if n} == live
    assert balance == 0
