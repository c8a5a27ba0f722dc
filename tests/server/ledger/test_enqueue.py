"""Storing a sweep: whole or not at all, once per key, with flat memory."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path

import psycopg2
import pytest
from sqlalchemy import Engine, text

from effillm_server.contract.outcome import InfeasibleReason
from effillm_server.errors import Conflict
from effillm_server.ledger import queries, queue
from effillm_server.lifecycle import JobState, SweepState
from tests.support.ledger import Plan, cell, definition, submit

REFUSED = (InfeasibleReason.CONTEXT_WINDOW, "needs 4100 tokens,\tthe window is 2048\\n")


def _plans(count: int) -> Iterator[Plan]:
    for n in range(count):
        yield Plan(n, cell(batch_size=n % 64 + 1, repeat=n // 5000 + 1), f"{n:064x}")


def test_every_cell_comes_back_as_it_went_in(engine: Engine) -> None:
    cells = [cell(), cell(batch_size=2, revision="main"), cell(workload="short-qa", sequence_length=None)]
    with engine.begin() as c:
        sweep_id = submit(c, *cells)
    with engine.connect() as c:
        stored = queries.jobs(c, sweep_id, None, 10)
    assert [job.cell for job in stored] == cells
    assert {job.state for job in stored} == {JobState.PENDING}


def test_cells_known_to_be_infeasible_are_rows_with_their_reason(engine: Engine) -> None:
    plans = [Plan(0, cell(), "a"), Plan(1, cell(batch_size=2), "b", REFUSED)]
    with engine.begin() as c:
        assert queue.enqueue(c, queue.NewSweep("s1", definition()), plans) == 2
    with engine.connect() as c:
        sweep, job = queries.sweep(c, "s1"), queries.jobs(c, "s1", None, 10)[1]
    assert (job.state, job.reason, job.message) == (JobState.INFEASIBLE, *REFUSED)
    assert sweep is not None
    assert (sweep.total, sweep.counts[JobState.PENDING], sweep.reasons["context_window"]) == (2, 1, 1)


def test_a_sweep_without_any_feasible_cell_is_finished_at_once(engine: Engine) -> None:
    with engine.begin() as c:
        queue.enqueue(c, queue.NewSweep("s1", definition()), [Plan(0, cell(), "a", REFUSED)])
    with engine.connect() as c:
        sweep = queries.sweep(c, "s1")
    assert sweep is not None
    assert sweep.state is SweepState.FINISHED
    assert sweep.finished_at is not None


def test_an_expansion_that_breaks_leaves_nothing(engine: Engine) -> None:
    def broken() -> Iterator[Plan]:
        yield from _plans(20_000)
        raise RuntimeError("the power went")

    with pytest.raises(RuntimeError), engine.begin() as c:
        queue.enqueue(c, queue.NewSweep("s1", definition()), broken())
    with engine.connect() as c:
        assert queries.sweep(c, "s1") is None
        assert c.execute(text("SELECT count(*) FROM job")).scalar_one() == 0


def test_the_same_key_with_the_same_definition_is_the_same_sweep(engine: Engine) -> None:
    with engine.begin() as c:
        first = submit(c, cell(), owner="ada", key="k1")
    with engine.begin() as c:
        repeated = queue.enqueue(c, queue.NewSweep("other", definition(), "ada", "k1"), _plans(1))
    with engine.connect() as c:
        found = queries.sweep_by_key(c, "ada", "k1")
        assert queries.sweep(c, "other") is None
    assert found is not None
    assert (found.id, repeated) == (first, 1)


def test_the_same_key_with_another_definition_is_a_conflict_that_names_the_sweep(engine: Engine) -> None:
    with engine.begin() as c:
        first = submit(c, cell(), owner="ada", key="k1")
    with pytest.raises(Conflict, match=first), engine.begin() as c:
        submit(c, cell(), owner="ada", key="k1", name="another")


def test_a_key_belongs_to_its_owner(engine: Engine) -> None:
    with engine.begin() as c:
        ids = {submit(c, cell(), owner=owner, key="k1") for owner in ("ada", "grace", None)}
    assert len(ids) == 3


def test_two_submissions_with_one_key_at_once_become_one_sweep(engine: Engine) -> None:
    first = engine.connect()
    submit(first, cell(), owner="ada", key="k1")
    with engine.connect() as second:
        second.execute(text("SET LOCAL lock_timeout = 100"))
        with pytest.raises(Exception, match="lock timeout"):
            submit(second, cell(), owner="ada", key="k1")
    first.commit()
    first.close()
    with engine.begin() as c:
        submit(c, cell(), owner="ada", key="k1")
        assert len(queries.sweeps(c, None, 10)) == 1


def test_a_hundred_thousand_cells_are_stored_with_flat_memory(engine: Engine) -> None:
    resident: list[int] = []

    def watched() -> Iterator[Plan]:
        for plan in _plans(100_000):
            if plan.ordinal % 10_000 == 9_999:
                resident.append(_resident_bytes())
            yield plan

    with engine.begin() as c:
        assert queue.enqueue(c, queue.NewSweep("s1", definition()), watched()) == 100_000
        sweep = queries.sweep(c, "s1")
    assert sweep is not None
    assert (sweep.total, sweep.counts[JobState.PENDING]) == (100_000, 100_000)
    # From the second chunk of ten thousand to the last: less than a tenth of what eighty thousand rows take.
    assert resident[-1] - resident[1] < 4 * 10**6


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def test_a_new_sweep_is_announced_when_it_is_committed(engine: Engine) -> None:
    listener = psycopg2.connect(host=engine.url.query["host"], user=engine.url.username, dbname=engine.url.database)
    listener.autocommit = True
    listener.cursor().execute("LISTEN effillm")
    with engine.begin() as c:
        sweep_id = submit(c, cell())
        listener.poll()
        assert listener.notifies == []
    listener.poll()
    while not listener.notifies:
        listener.poll()
    assert listener.notifies[0].payload == f'{{"kind":"sweep_created","sweep":"{sweep_id}","job":null}}'
    listener.close()


def test_ids_are_short_and_do_not_repeat() -> None:
    ids = {queue.new_sweep_id() for _ in range(1000)}
    assert len(ids) == 1000
    assert all(len(one) == 13 and one.isalnum() for one in ids)
