"""The examples: each is a sweep the control plane accepts, and as large as its first lines say."""

from __future__ import annotations

from pathlib import Path

import pytest

from effillm_server.catalog import load
from effillm_server.contract.parse import parse_definition
from effillm_server.expand import check, preview

EXAMPLES = Path(__file__).parents[1] / "examples"
ROWS = {
    "quickstart.yaml": (12, 12),
    "paper.yaml": (34_300, 19_992),
    "workloads.yaml": (54, 54),
    "processor.yaml": (77, 77),
    "repeats.yaml": (20, 20),
    "simulated-cluster.yaml": (64, 64),
    "quantization.yaml": (15, 15),
}


def test_every_example_is_tested() -> None:
    assert {path.name for path in EXAMPLES.glob("*.yaml")} == set(ROWS)


@pytest.mark.parametrize("name", ROWS)
def test_an_example_is_accepted_and_has_the_rows_it_announces(name: str) -> None:
    catalog = load()
    sweep = parse_definition((EXAMPLES / name).read_bytes())
    check(sweep, catalog.hardware, catalog.workloads, 1_000_000)
    seen = preview(sweep, catalog.models, catalog.hardware)
    assert (seen.total, seen.pending) == ROWS[name]


def test_the_paper_s_grid_holds_the_catalog_s_models_all() -> None:
    sweep = parse_definition((EXAMPLES / "paper.yaml").read_bytes())
    assert {choice.id for choice in sweep.models} == set(load().models)
