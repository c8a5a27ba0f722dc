"""What pages read in bulk: a rectangle of the matrix, the range of its numbers, what a job takes."""

from __future__ import annotations

import pytest
from sqlalchemy import Engine

from effillm_server.ledger import queries, queue
from effillm_server.ledger.read_grid import GridSlice
from effillm_server.lifecycle import JobState
from tests.support import ledger

SLICE = GridSlice("cpu", "simulated", "default", "synthetic", 4, 1, ["facebook/opt-125m"], [1, 2], [128])


def test_a_rectangle_has_its_cells_only_with_their_state_and_numbers(engine: Engine) -> None:
    with engine.begin() as c:
        device = ledger.join(c)
        outside = (
            ledger.cell(batch_size=4),
            ledger.cell(sequence_length=256),
            ledger.cell(hardware="t4"),
            ledger.cell(repeat=2),
        )
        sweep = ledger.submit(c, ledger.cell(), ledger.cell(batch_size=2), *outside)
        held = ledger.leased(c, device)
        queue.finish(c, device, ledger.BOOT, held.job_id, held.fence, ledger.measured(), 0.5, None)
        if held.cell.repeat == 2:  # which load group comes first depends on the sweep's random id
            held = ledger.leased(c, device)
            queue.finish(c, device, ledger.BOOT, held.job_id, held.fence, ledger.measured(), 0.5, None)
        found = queries.grid(c, sweep, SLICE)
        assert [(cell.batch_size, cell.sequence_length) for cell in found] == [(1, 128), (2, 128)]
        measured, waiting = found
        assert (measured.id, measured.state, measured.verdict, measured.simulated) == (
            held.job_id, JobState.MEASURED, "valid", True,
        )  # fmt: skip
        assert measured.throughput_tok_s == pytest.approx(4.0)
        assert measured.ttft_s == pytest.approx(0.25)
        assert (waiting.state, waiting.throughput_tok_s, waiting.simulated) == (JobState.PENDING, None, False)


def test_the_cells_of_other_sweeps_are_not_read(engine: Engine) -> None:
    with engine.begin() as c:
        sweep = ledger.submit(c, ledger.cell())
        ledger.submit(c, ledger.cell())
        assert len(queries.grid(c, sweep, SLICE)) == 1


def test_the_range_of_a_sweep_is_of_what_it_has_measured(engine: Engine) -> None:
    with engine.begin() as c:
        sweep = ledger.submit(c, ledger.cell(), ledger.cell(batch_size=2))
        assert queries.extremes(c, sweep).jobs == 0
        assert queries.extremes(c, sweep).throughput_high is None
        device = ledger.join(c)
        for _ in range(2):
            held = ledger.leased(c, device)
            outcome = ledger.measured(child=ledger.child(f"child-{held.job_id}"))
            queue.finish(c, device, ledger.BOOT, held.job_id, held.fence, outcome, 0.5, None)
        found = queries.extremes(c, sweep)
        assert (found.jobs, found.throughput_low, found.throughput_high) == (2, pytest.approx(4.0), pytest.approx(8.0))
        assert found.ttft_low == found.ttft_high == pytest.approx(0.25)


def test_what_a_job_takes_is_known_once_one_has_run(engine: Engine) -> None:
    with engine.begin() as c:
        ledger.submit(c, ledger.cell())
        assert queries.served(c) == {}
        device = ledger.join(c)
        held = ledger.leased(c, device)
        c.exec_driver_sql("UPDATE sweep_counter SET leased_since_ms = leased_since_ms - 2000 WHERE leased > 0")
        c.exec_driver_sql("UPDATE job SET leased_at = leased_at - interval '2 s' WHERE state = 'leased'")
        queue.finish(c, device, ledger.BOOT, held.job_id, held.fence, ledger.measured(), 0.5, None)
        found = queries.served(c)
        assert found.keys() == {"cpu"}
        assert found["cpu"].jobs == 1
        assert 2.0 <= found["cpu"].seconds < 120
