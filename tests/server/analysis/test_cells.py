from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from effillm_server.analysis.cells import cells, select, slices
from effillm_server.analysis.facts import Facts
from tests.support.sweeps import Grid, Noise, invent


def test_simulated_rows_are_never_mixed_with_measured_ones() -> None:
    rows = invent(Grid(batch_size=(1, 2)))
    rows[0]["simulated"] = True
    assert [row["job"] for row in select(rows).rows] == [rows[1]["job"]]
    assert select(rows).left_out["simulated"] == 1
    assert [row["job"] for row in select(rows, simulated=True).rows] == [rows[0]["job"]]


def test_a_wholly_simulated_sweep_is_analysed_and_says_so() -> None:
    rows = invent(Grid(fixed={"simulated": True}))
    assert select(rows).simulated is True and len(select(rows).rows) == 1


def test_invalid_rows_stay_out_unless_asked_for_and_suspect_ones_stay_in() -> None:
    rows = invent(Grid(batch_size=(1, 2, 4)))
    rows[0]["verdict"], rows[1]["verdict"] = "invalid", "suspect"
    assert len(select(rows).rows) == 2 and select(rows).note == "left out: 1 invalid"
    assert len(select(rows, include_invalid=True).rows) == 3


def test_one_process_keeps_its_own_interval() -> None:
    (cell,) = cells(invent(Grid()))
    estimate = cell.estimate("throughput_tok_s")
    assert estimate is not None and estimate.processes == 1
    assert estimate.low == cell.rows[0]["throughput_tok_s_ci95_low"]


def test_several_processes_are_the_unit_and_iterations_inside_do_not_count() -> None:
    (cell,) = cells(invent(Grid(repeats=5), noise=Noise(between=0.05)))
    means = np.array([row["throughput_tok_s_mean"] for row in cell.rows])
    estimate = cell.estimate("throughput_tok_s")
    assert estimate is not None and estimate.processes == 5
    assert (estimate.low, estimate.high) == pytest.approx(stats.t.interval(0.95, 4, means.mean(), stats.sem(means)))


def test_a_single_process_carries_the_machines_noise_beside_its_own() -> None:
    (one,), (five,) = cells(invent(Grid())), cells(invent(Grid(repeats=5)))
    facts = Facts(noise_floor=0.10)
    single, several = one.estimate("ttft_s"), five.estimate("ttft_s")
    assert single is not None and several is not None
    assert single.log_variance(facts) == pytest.approx(single.relative_se**2 + 0.10**2 / 2)
    assert several.log_variance(facts) == several.relative_se**2


def test_a_slice_varies_in_its_free_axes_only() -> None:
    found = slices(cells(invent(Grid(hardware=("cpu", "t4"), batch_size=(1, 2, 4)))), ("batch_size",))
    assert sorted(len(members) for members in found.values()) == [3, 3]
