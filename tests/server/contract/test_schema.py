"""The published schemas: current, valid, and in agreement with what the parser takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from effillm_server.contract.parse import validate_definition
from effillm_server.contract.schema import PUBLISHED, SUFFIX, render, schemas, write
from effillm_server.errors import BadInput
from tests.support.definitions import document

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "docs/contract"


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_schema_is_current(name: str) -> None:
    published = (FOLDER / (name + SUFFIX)).read_text(encoding="utf-8")
    assert published == render(schemas()[name]), "run `python -m effillm_server.contract.schema`"


def test_no_other_schema_is_published() -> None:
    assert {path.name for path in FOLDER.iterdir()} == {name + SUFFIX for name in PUBLISHED}


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_schema_is_a_valid_schema(name: str) -> None:
    jsonschema.Draft202012Validator.check_schema(schemas()[name])


def test_the_generator_writes_into_the_folder_it_is_given(tmp_path: Path) -> None:
    paths = write(tmp_path / "new")
    assert sorted(path.name for path in paths) == sorted(name + SUFFIX for name in PUBLISHED)
    assert all(json.loads(path.read_text()) for path in paths)


def accepts(content: Any) -> bool:
    return bool(jsonschema.Draft202012Validator(schemas()["sweep-definition"]).is_valid(content))


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda path: path.name)
def test_the_schema_and_the_parser_take_every_example(path: Path) -> None:
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    validate_definition(content)
    assert accepts(content)


@pytest.mark.parametrize(
    "changes",
    [
        {}, {"hardware": "cpu"}, {"batch_size": 4}, {"models": "a/b"}, {"models": {"id": "a/b", "weights": "synthetic"}},
        {"measurement": {"warmup": 3, "iterations": {"min": 5, "max": 9}}}, {"exclude": [{"batch_size": 1, "hardware": ["cpu"]}]},
    ],
)  # fmt: skip
def test_the_schema_takes_the_short_forms_the_parser_takes(changes: dict[str, Any]) -> None:
    validate_definition(document(**changes))
    assert accepts(document(**changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"batch_size": 0}, {"batch_size": "four"}, {"hardware": []}, {"colour": 1}, {"quantization": "int9"}, {"name": None},
        {"exclude": {"hardware": "cpu"}}, {"measurement": {"repeats": 0}}, {"models": [3]},
    ],
)  # fmt: skip
def test_the_schema_refuses_what_the_parser_refuses(changes: dict[str, Any]) -> None:
    with pytest.raises(BadInput):
        validate_definition(document(**changes))
    assert not accepts(document(**changes))
