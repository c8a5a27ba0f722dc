"""The reference pages name everything a user can set."""

from __future__ import annotations

import json
import re
from pathlib import Path

import yaml

from effillm_server.catalog import load
from effillm_server.contract.outcome import InfeasibleReason
from effillm_server.contract.parse import parse_definition
from effillm_server.contract.quantization import Quantization
from effillm_server.contract.sweep import Exclusion, MeasurementPlan, SweepDefinition
from effillm_server.lifecycle import JobState
from effillm_server.settings import PREFIX, Settings

DOCS = Path(__file__).parents[2] / "docs"


def test_every_setting_is_explained_with_its_default() -> None:
    text = (DOCS / "settings.md").read_text()
    for name, field in Settings.model_fields.items():
        row = next((line for line in text.splitlines() if line.startswith(f"| `{PREFIX}{name.upper()}` |")), None)
        assert row is not None, name
        if isinstance(field.default, int | float) and not isinstance(field.default, bool):
            assert f"| {field.default:g} |" in row or f"| {field.default} |" in row, row


def test_every_key_of_a_sweep_is_explained() -> None:
    text = (DOCS / "sweep.md").read_text()
    for key in SweepDefinition.model_fields:
        assert f"`{key}`" in text or f"`{key}." in text, key
    for key in MeasurementPlan.model_fields:
        assert f"`measurement.{key}`" in text, key
    for value in (*Exclusion.model_fields, *Quantization, *JobState, *InfeasibleReason, *load().workloads):
        assert value in text, value


def test_the_example_of_the_reference_page_is_a_valid_sweep() -> None:
    text = (DOCS / "sweep.md").read_text()
    block = text.split("```yaml\n")[1].split("```")[0]
    from_yaml = parse_definition(block.encode(), "application/yaml")
    from_json = parse_definition(json.dumps(yaml.safe_load(block)).encode(), "application/json")
    assert from_yaml == from_json


def test_the_readme_names_every_suite_and_every_benchmark() -> None:
    root = DOCS.parent
    table = (root / "README.md").read_text().split("## How far to trust it")[1]
    targets = re.findall(r"^(test[a-z-]*):", (root / "Makefile").read_text(), re.MULTILINE)
    assert len(targets) >= 8
    for named in (*(f"`make {target}`" for target in targets), *benchmarks(root)):
        assert named in table, named


def benchmarks(root: Path) -> list[str]:
    return [f"`python benchmarks/{script.name}" for script in sorted((root / "benchmarks").glob("*.py"))]
