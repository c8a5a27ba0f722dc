"""JSON schemas of the contract: `python -m effillm_server.contract.schema [FOLDER]` writes them, docs/contract by default."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from effillm_server.contract.base import CONTRACT_VERSION
from effillm_server.contract.fingerprint import DeviceDeclaration, Fingerprint
from effillm_server.contract.job import Cell, Lease
from effillm_server.contract.outcome import Outcome
from effillm_server.contract.sweep import SweepDefinition

PUBLISHED: dict[str, Any] = {
    "sweep-definition": SweepDefinition,
    "cell": Cell,
    "lease": Lease,
    "outcome": Outcome,
    "fingerprint": Fingerprint,
    "device-declaration": DeviceDeclaration,
}
SUFFIX = ".schema.json"
# The short forms pydantic's validators accept before its own types see them, and its schema therefore leaves out.
_SHORT_FORMS = {"ModelChoice": "string", "Bounds": "integer"}
_SCALAR_FOR_LIST = ("SweepDefinition", "Exclusion")
_LISTS_ONLY = ("exclude",)
_ARRAY_KEYS = ("type", "items", "minItems", "maxItems", "minLength", "maxLength")


def schemas() -> dict[str, dict[str, Any]]:
    """Every published JSON schema (draft 2020-12) by name."""
    return {name: _schema(name, kind) for name, kind in PUBLISHED.items()}


def render(schema: dict[str, Any]) -> str:
    """The text of a schema file."""
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def write(folder: Path) -> list[Path]:
    """Writes one file per schema into `folder` and returns the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, schema in schemas().items():
        path = folder / (name + SUFFIX)
        path.write_text(render(schema), encoding="utf-8")
        paths.append(path)
    return paths


def _schema(name: str, kind: Any) -> dict[str, Any]:
    schema = TypeAdapter(kind).json_schema()
    definitions = schema.get("$defs", {})
    for title, shape in [*definitions.items(), (schema.get("title"), schema)]:
        if title in _SCALAR_FOR_LIST:
            _accept_scalars(shape["properties"])
    for title, short in _SHORT_FORMS.items():
        if title in definitions:
            definitions[title] = {"anyOf": [{"type": short}, definitions[title]]}
    head = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:effillm:contract:v{CONTRACT_VERSION}:{name}",
    }
    return head | schema


def _accept_scalars(properties: dict[str, Any]) -> None:
    """A scalar stands for a list of one on every axis."""
    for name, shape in properties.items():
        if name in _LISTS_ONLY:
            continue
        if "anyOf" in shape:
            arrays = [option for option in shape["anyOf"] if "items" in option]
            shape["anyOf"] = [_array(o) if "items" in o else o for o in shape["anyOf"]] + [a["items"] for a in arrays]
        elif "items" in shape:
            array = _array({key: shape.pop(key) for key in list(shape) if key in _ARRAY_KEYS})
            shape["anyOf"] = [array, array["items"]]


def _array(shape: dict[str, Any]) -> dict[str, Any]:
    """Behind a validator function pydantic writes the lengths of a list as those of a text."""
    return {{"minLength": "minItems", "maxLength": "maxItems"}.get(key, key): value for key, value in shape.items()}


if __name__ == "__main__":
    for written in write(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/contract")):
        print(written)
