"""Reads: pages by key, the frontier, why a job waits, the event stream."""

from __future__ import annotations

import re

import pytest
from sqlalchemy import Engine, text

from effillm_server.errors import NotFound
from effillm_server.ledger import queries, queue
from effillm_server.lifecycle import DeviceState, JobState, SweepState
from tests.support.ledger import (
    BOOT,
    cell,
    crashed,
    declaration,
    join,
    leased,
    measured,
    out_of_memory,
    skip_backoff,
    submit,
)


def test_sweeps_come_newest_first_page_by_page(engine: Engine) -> None:
    ids = []
    for n in range(5):
        with engine.begin() as c:
            ids.append(submit(c, cell(), name=f"sweep {n}"))
    with engine.connect() as c:
        first = queries.sweeps(c, None, 2)
        rest = queries.sweeps(c, first[-1].id, 10)
        assert queries.sweep(c, "nix") is None
    assert [sweep.id for sweep in first + rest] == ids[::-1]
    assert {sweep.state for sweep in first} == {SweepState.PENDING}


def test_jobs_come_by_ordinal_page_by_page_and_by_state(engine: Engine) -> None:
    with engine.begin() as c:
        join(c)
        sweep_id = submit(c, *(cell(batch_size=b) for b in range(1, 6)))
        lease = leased(c)
        pages = [queries.jobs(c, sweep_id, after, 2) for after in (None, 1, 3)]
        assert [[job.ordinal for job in page] for page in pages] == [[0, 1], [2, 3], [4]]
        assert [job.id for job in queries.jobs(c, sweep_id, None, 9, JobState.LEASED)] == [lease.job_id]
        assert queries.job(c, 404) is None


def test_results_are_a_row_for_every_job_with_samples_where_asked(engine: Engine) -> None:
    with engine.begin() as c:
        join(c)
        sweep_id = submit(c, cell(), cell(batch_size=2))
        lease = leased(c)
        queue.finish(c, "box-cpu0", BOOT, lease.job_id, 1, measured())
        full = queries.results(c, sweep_id, None, 10, with_samples=True)
        lean = queries.results(c, sweep_id, None, 10, with_samples=False)
        assert queries.result(c, lease.job_id) == full[0]
        assert queries.result(c, full[1].job.id) is None
        assert [r.job.ordinal for r in queries.results(c, sweep_id, 0, 10, with_samples=True)] == [1]
    assert [len(result.samples) for result in full + lean] == [13, 0, 0, 0]
    assert full[1].measurement is None


def test_the_frontier_names_the_largest_that_ran_and_the_smallest_that_did_not(engine: Engine) -> None:
    with engine.begin() as c:
        join(c)
        sweep_id = submit(c, *(cell(batch_size=b) for b in (1, 2, 4, 8)), cell(batch_size=1, sequence_length=256))
        for outcome in (measured(), measured(), measured(), out_of_memory()):
            lease = leased(c)
            queue.finish(c, "box-cpu0", BOOT, lease.job_id, 1, outcome)
        short, long = queries.frontier(c, sweep_id)
    assert (short.sequence_length, short.largest_batch_size, short.smallest_infeasible_batch_size) == (128, 2, 4)
    assert short.reason == "out_of_device_memory"
    assert (long.sequence_length, long.largest_batch_size, long.smallest_infeasible_batch_size) == (256, 1, None)


def test_a_job_says_why_it_is_where_it_is(engine: Engine) -> None:
    with engine.begin() as c:
        sweep_id = submit(c, cell(), cell(engine="transformers", batch_size=2))
        first, second = (job.id for job in queries.jobs(c, sweep_id, None, 2))
        assert queries.explain(c, first) == "no device of class cpu"
        queue.register_device(c, declaration(declared=True), BOOT)
        assert queries.explain(c, first) == (
            "no device of class cpu is usable: box-cpu0 is quarantined: not attested yet"
        )
        assert queries.explain(c, second).startswith("no detected device of class cpu")
        queue.attest(c, "box-cpu0", BOOT, None, None)
        assert queries.explain(c, first) == "next: a device of class cpu is free"
        lease = leased(c)
        assert queries.explain(c, first) == "being measured on box-cpu0, attempt 1 of 3"
        queue.finish(c, "box-cpu0", BOOT, lease.job_id, 1, crashed())
        # Two seconds of backoff, less what has passed since.
        said = r"attempt 1 of 3: signal SEGV \(crashed\)\. Tried again in (2|[01]\.\d+) s"
        assert re.match(said, queries.explain(c, first))
        skip_backoff(c)
        assert leased(c).fence == 2
        assert queries.explain(c, first) == "being measured on box-cpu0, attempt 2 of 3"
        with pytest.raises(NotFound):
            queries.explain(c, 404)


def test_a_job_behind_busy_devices_and_higher_priorities_says_so(engine: Engine) -> None:
    with engine.begin() as c:
        join(c)
        sweep_id = submit(c, cell())
        submit(c, cell(), cell(batch_size=2), priority=5)
        leased(c)
        job = queries.jobs(c, sweep_id, None, 1)[0]
        explanation = queries.explain(c, job.id)
    assert explanation == "waits for a device of class cpu: 1 of 1 busy, behind 1 sweep of higher priority"


@pytest.mark.parametrize(("outcome", "words"), [
    (measured(), "measured on box-cpu0, verdict valid"),
    (out_of_memory(), "cannot run (out_of_device_memory): tried to allocate 20 GB"),
])  # fmt: skip
def test_an_ended_job_says_how(engine: Engine, outcome: object, words: str) -> None:
    with engine.begin() as c:
        join(c)
        submit(c, cell())
        lease = leased(c)
        queue.finish(c, "box-cpu0", BOOT, lease.job_id, 1, outcome)  # type: ignore[arg-type]
        assert queries.explain(c, lease.job_id) == words


def test_totals_classes_and_readiness(engine: Engine) -> None:
    with engine.begin() as c:
        join(c)
        queue.register_device(c, declaration("gpu", "t4"), BOOT)
        submit(c, cell(), cell(hardware="t4"))
        done = submit(c, cell())
        queue.cancel_sweep(c, done)
        counts = queries.counts(c)
        assert queries.known_hardware(c) == {"cpu", "t4"}
        assert queries.waiting_classes(c) == {"cpu": 1, "t4": 1}
        assert queries.ready(c)
    assert (counts.jobs[JobState.PENDING], counts.jobs[JobState.CANCELLED]) == (2, 1)
    assert (counts.devices[DeviceState.FREE], counts.devices[DeviceState.QUARANTINED]) == (1, 1)


def test_events_come_in_order_and_can_be_resumed(engine: Engine) -> None:
    with engine.begin() as c:
        join(c)
        sweep_id = submit(c, cell())
        lease = leased(c)
        queue.finish(c, "box-cpu0", BOOT, lease.job_id, 1, measured())
    with engine.connect() as c:
        every = queries.events(c, 0, 100)
        mine = queries.events(c, 0, 100, sweep_id)
        assert queries.events(c, every[2].id, 100) == every[3:]
        assert queries.events(c, 0, 2) == every[:2]
        assert queries.last_event_id(c) == every[-1].id
    assert [event.kind for event in mine] == ["sweep_created", "job_leased", "job_measured", "sweep_finished"]
    assert mine[1].data == {"device": "box-cpu0", "fence": 1}


def test_no_event_appears_behind_one_that_was_read(engine: Engine) -> None:
    with engine.begin() as c:
        submit(c, cell())
    with engine.connect() as slow, engine.connect() as reader:
        submit(slow, cell(), name="slow")
        with engine.begin() as c:
            submit(c, cell(), name="fast")
        before = [event.data["name"] for event in queries.events(reader, 0, 100)]
        reader.rollback()
        slow.commit()
        after = [event.data["name"] for event in queries.events(reader, 0, 100)]
    # The slow one drew the smaller id: the fast one, committed before, is not shown until the slow one is settled.
    assert before == ["test"]
    assert after == ["test", "slow", "fast"]


def test_a_transaction_that_is_rolled_back_holds_nothing_up(engine: Engine) -> None:
    with engine.connect() as c:
        submit(c, cell(), name="gone")
        c.rollback()
    with engine.begin() as c:
        submit(c, cell(), name="kept")
    with engine.connect() as c:
        assert [event.data["name"] for event in queries.events(c, 0, 100)] == ["kept"]


def test_event_order_survives_the_wrap_of_the_32_bits_a_lock_can_name(engine: Engine) -> None:
    with engine.begin() as c:
        c.execute(text("SELECT setval('event_id_seq', 4294967290)"))
    names: list[str] = []
    for n in range(12):
        with engine.connect() as slow:
            submit(slow, cell(), name="slow")
            with engine.begin() as c:
                submit(c, cell(), name=f"{n}")
            with engine.connect() as c:
                assert [event.data["name"] for event in queries.events(c, 0, 100)] == names
        names.append(f"{n}")
    with engine.connect() as c:
        assert [event.data["name"] for event in queries.events(c, 0, 100)] == names
