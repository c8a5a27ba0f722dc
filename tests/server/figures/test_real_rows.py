"""The figures on rows that were really measured: `effillm run examples/processor.yaml` on two cores, its results.json."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from effillm_server.analysis import Facts
from effillm_server.analysis.rows import COLUMNS
from effillm_server.figures import FIGURES, Options, chart, report
from tests.support.sweeps import SIZES

ROWS: list[dict[str, Any]] = json.loads((Path(__file__).parent / "processor.json").read_text())
OPTIONS = Options(facts=Facts(parameters=SIZES))
# Figure 16 needs prices, which nobody gave.
LACKING = {"cost-efficiency": "price"}
# name -> what is drawn apart from each other on it.
SERIES = {
    "throughput-vs-batch": 4, "throughput-vs-sequence": 4, "ttft-vs-batch": 4, "ttft-vs-sequence": 4,
    "per-instance-throughput": 4,
}  # fmt: skip


def points(spec: Any) -> list[dict[str, Any]]:
    """Every datum that any layer of the specification draws."""
    inner = [point for part in spec.get("layer", []) + spec.get("hconcat", []) for point in points(part)]
    return list(spec.get("data", {}).get("values", [])) + inner


def test_the_rows_are_measurements_with_all_that_a_row_has() -> None:
    assert len(ROWS) == 77
    for row in ROWS:
        assert not row["simulated"] and row["weights"] == "synthetic" and row["state"] == "measured"
        assert set(COLUMNS) <= set(row)
    assert {row["quantization"] for row in ROWS} == {"fp32", "bf16", "int8", "int4"}


@pytest.mark.parametrize("name", sorted(set(FIGURES) - set(LACKING)))
def test_a_figure_of_real_rows_is_filled(name: str) -> None:
    spec = chart(name, ROWS, OPTIONS)
    meta = spec["usermeta"]
    assert meta["not_enough"] is None
    assert set(meta["jobs"]) <= {row["job"] for row in ROWS} and meta["n"] == len(meta["jobs"]) >= 4
    numbers = [value for point in points(spec) for value in point.values() if isinstance(value, float)]
    assert all(math.isfinite(value) for value in numbers)


@pytest.mark.parametrize(("name", "count"), SERIES.items())
def test_lines_of_real_rows_are_one_for_each_model(name: str, count: int) -> None:
    spec = chart(name, ROWS, OPTIONS)
    assert len({point["series"] for point in points(spec) if "series" in point}) == count


@pytest.mark.parametrize(("name", "what"), LACKING.items())
def test_a_figure_that_these_rows_cannot_fill_says_what_it_needs(name: str, what: str) -> None:
    assert what in chart(name, ROWS, OPTIONS)["usermeta"]["not_enough"]


def test_the_report_of_real_rows_has_every_figure_and_says_what_it_finds() -> None:
    html = report(None, ROWS, OPTIONS)
    for figure in FIGURES.values():
        assert f"Figure {figure.number}" in html
    assert "synthetic weights" in html and len(html) < 5_000_000
