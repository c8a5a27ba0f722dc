"""Every part of the ledger's benchmark in small, on the tests' own Postgres: it runs, and what does not depend on speed holds.

Storing is tried in every test run, all of it by `make test-benchmarks`.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import ledger
from benchmarks.scale import common
from effillm_server import expand

CELLS = 1500


@pytest.mark.parametrize("parts", [
    ("store", "kill"), *(pytest.param(parts, marks=pytest.mark.benchmarks)
    for parts in (("rounds", "procrastinate"), ("read", "events"), ("crowd",))),
])  # fmt: skip
def test_each_part_of_the_benchmark_runs_in_small(postgres_url: str, tmp_path: Path, parts: tuple[str, ...]) -> None:
    report = tmp_path / "ledger.json"
    words = ["--url", postgres_url, "--quick", "--pending", str(CELLS), "--seconds", "0.3", "--json", str(report)]
    assert ledger.main([*words, "--devices", "16", "--subscribers", "20", "--cell-s", "1", "--parts", *parts]) == 0
    figures = json.loads(report.read_text())
    total = expand.count(common.definition(CELLS))
    expected = {
        "store.cells": total, "kill.rows_left": 0, "kill.jobs_after_repeat": total, "kill.jobs_missing": 0,
        "kill.answer_to_third": total, "kill.sweeps_of_key": 1, "read.sweep_jobs": total, "events.1.missing": 0,
        "events.20.missing": 0, "crowd.devices": 16, "crowd.lost_leases": 0, "crowd.expired": 0,
    }  # fmt: skip
    found = {name: figures[name] for name in expected if name.split(".")[0] in parts}
    assert found == {name: expected[name] for name in found}
    assert all(figures[f"{part}.took_s"] > 0 for part in parts)
    for name in ("rounds.1500.1.per_s", "procrastinate.1500.1.per_s", "crowd.reports_per_s", "renewals.per_s"):
        assert figures.get(name, 1.0) > 0


def test_a_definition_has_the_cells_asked_for_or_a_few_more() -> None:
    for cells in (1, 49, 50, 5000, 1_000_000):
        assert cells <= expand.count(common.definition(cells)) < cells + common.PER_MODEL


def test_a_quantile_is_a_value_that_was_measured() -> None:
    assert common.quantile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert common.quantile([float(n) for n in range(1, 101)], 0.99) == 99.0
    assert common.quantile([5.0], 0.99) == 5.0


def test_what_fails_in_a_process_beside_comes_out_here() -> None:
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        common.side_by_side(_divide, [(0,), (0,)], within_s=60)


def _divide(barrier: object, by: int) -> float:
    return 1 / by


def test_a_target_is_a_least_or_a_most() -> None:
    assert ledger.Target(0.5, at_least=True).is_met(0.5)
    assert not ledger.Target(0.5, at_least=True).is_met(0.4)
    assert ledger.Target(0).is_met(0)
    assert not ledger.Target(15.0).is_met(15.1)
