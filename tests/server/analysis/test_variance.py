from __future__ import annotations

import numpy as np
import pytest

from effillm_server.analysis.cells import cells
from effillm_server.analysis.variance import variance_components
from tests.support.sweeps import Grid, Noise, invent


def test_known_components_are_recovered_on_average() -> None:
    grid = Grid(batch_size=tuple(range(1, 61)), repeats=6)
    found = variance_components(cells(invent(grid, noise=Noise(between=0.05, within=0.02))))
    assert np.sqrt(np.mean([e["between_relative_sd"] ** 2 for e in found])) == pytest.approx(0.05, rel=0.15)
    assert np.sqrt(np.mean([e["within_relative_sd"] ** 2 for e in found])) == pytest.approx(0.02, rel=0.05)


def test_equal_processes_have_no_variance_between_them() -> None:
    (entry,) = variance_components(cells(invent(Grid(repeats=4), noise=Noise(between=0.0, within=0.0))))
    assert (entry["between_relative_sd"], entry["within_relative_sd"], entry["share_between"]) == (0.0, 0.0, None)


def test_it_agrees_with_the_one_way_analysis_of_variance() -> None:
    rows = invent(Grid(repeats=5), noise=Noise(between=0.04, within=0.02))
    groups = np.array([row["series"]["throughput_tok_s"] for row in rows])
    between = 10 * groups.mean(axis=1).var(ddof=1)
    within = groups.var(axis=1, ddof=1).mean()
    (entry,) = variance_components(cells(rows))
    assert entry["between_relative_sd"] == pytest.approx(np.sqrt((between - within) / 10) / groups.mean())
    assert entry["share_between"] == pytest.approx(((between - within) / 10) / ((between - within) / 10 + within))


def test_a_cell_measured_once_has_nothing_to_tell_apart() -> None:
    assert variance_components(cells(invent(Grid()))) == []
