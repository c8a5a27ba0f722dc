"""Text to sweep definition: safe YAML or JSON in, a definition or one clear BadInput out."""

from __future__ import annotations

import json
import re
from collections.abc import Hashable
from typing import Any

import yaml
from pydantic import ValidationError

from effillm_server.contract.problems import describe, plain
from effillm_server.contract.sweep import SweepDefinition
from effillm_server.errors import BadInput

MAX_DEPTH = 20
MAX_DIGITS = 40
MAX_VALUES = 200_000
JSON_TYPES = ("application/json",)
YAML_TYPES = ("application/yaml", "application/x-yaml", "text/yaml", "text/x-yaml", "text/plain")

try:
    from yaml import CSafeLoader as _Safe
except ImportError:  # PyYAML built without libyaml: the same classes in Python, some ten times slower
    from yaml import SafeLoader as _Safe  # type: ignore[assignment]


def parse_definition(content: str | bytes, content_type: str | None = None) -> SweepDefinition:
    """The sweep definition in `content`; no content type means YAML. Raises BadInput that lists everything wrong with it."""
    return validate_definition(parse_document(content, content_type))


def validate_definition(document: Any) -> SweepDefinition:
    """The sweep definition in a parsed document. Raises BadInput that lists everything wrong with it."""
    if not isinstance(document, dict):
        raise BadInput(
            f"expected a sweep definition, a mapping with keys such as name, models, hardware; found {_kind(document)}"
        )
    try:
        return SweepDefinition.model_validate(document)
    except ValidationError as error:
        message, field = describe(error, document)
        raise BadInput(message, field=field) from None


def parse_document(content: str | bytes, content_type: str | None = None) -> Any:
    """Plain values (dict, list, str, int, float, bool, None) of one YAML or JSON document. Raises BadInput."""
    media = (content_type or YAML_TYPES[0]).partition(";")[0].strip().lower()
    if media not in JSON_TYPES + YAML_TYPES:
        raise BadInput(
            f"content type {media!r} is not accepted: send application/yaml or application/json", field="Content-Type"
        )
    text = _decode(content)
    if not text.strip():
        raise BadInput("the document is empty; expected a sweep definition")
    return _json(text) if media in JSON_TYPES else _yaml(text)


class _Loader(_Safe):
    """YAML 1.2's core scalars only: `no` and `on` stay text, 1e-3 is a number, 010 is ten, a date is text."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - PyYAML's own attribute

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise BadInput(f"{_place(key.start_mark)}: a key must be a single word or number")
            if key.value in seen:
                raise BadInput(
                    f"{_place(key.start_mark)}: the key {plain(key.value)!r} stands twice", field=plain(key.value)
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep=True)


def _integer(loader: _Loader, node: yaml.ScalarNode) -> int:
    return _whole(node.value)


def _real(loader: _Loader, node: yaml.ScalarNode) -> float:
    return float(node.value)


_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""])
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"[-+]?[0-9]+$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+)$"),
    list("-+0123456789."),
)
_Loader.add_constructor("tag:yaml.org,2002:int", _integer)
_Loader.add_constructor("tag:yaml.org,2002:float", _real)


def _yaml(text: str) -> Any:
    try:
        _inspect(text)
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{_place(mark)}: " if mark else ""
        raise BadInput(f"not YAML: {where}{error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise BadInput(f"not YAML: {' '.join(str(error).split())}") from None


def _inspect(text: str) -> None:
    """Walks the events before anything is built: depth, aliases, anchors, tags and a second document are refused."""
    depth = documents = values = 0
    for event in yaml.parse(text, Loader=_Loader):
        match event:
            case yaml.AliasEvent():
                raise BadInput(f"{_place(event.start_mark)}: aliases are not accepted: write the value out")
            case yaml.DocumentStartEvent():
                documents += 1
                if documents > 1:
                    raise BadInput(f"{_place(event.start_mark)}: a second document begins; send one sweep at a time")
            case yaml.CollectionStartEvent():
                depth += 1
                _refuse_extras(event)
                if depth > MAX_DEPTH:
                    raise BadInput(f"{_place(event.start_mark)}: nested more than {MAX_DEPTH} levels deep")
            case yaml.CollectionEndEvent():
                depth -= 1
            case yaml.ScalarEvent():
                values += 1
                _refuse_extras(event)
                if values > MAX_VALUES:
                    raise BadInput(f"more than {MAX_VALUES:,} values; a sweep has at most 10,000 on an axis")


def _refuse_extras(event: Any) -> None:
    if event.anchor is not None:
        raise BadInput(f"{_place(event.start_mark)}: anchors are not accepted: write the value out")
    if event.tag is not None:
        raise BadInput(f"{_place(event.start_mark)}: the tag {plain(event.tag)!r} is not accepted: write plain values")


def _json(text: str) -> Any:
    try:
        document = json.loads(
            text, object_pairs_hook=_unique, parse_int=_whole, parse_float=_finite, parse_constant=_constant
        )
    except json.JSONDecodeError as error:
        raise BadInput(f"not JSON: line {error.lineno}, column {error.colno}: {error.msg}") from None
    except RecursionError:
        raise BadInput(f"nested more than {MAX_DEPTH} levels deep") from None
    _shallow(document)
    return document


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise BadInput(f"the key {plain(key)!r} stands twice", field=plain(key))
        result[key] = value
    return result


def _whole(text: str) -> int:
    # Python refuses to read thousands of digits with an error of its own; no quantity here needs forty.
    if len(text) > MAX_DIGITS:
        raise BadInput(f"the number {text[:12]}... has {len(text):,} digits, at most {MAX_DIGITS} are accepted")
    return int(text)


def _finite(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise BadInput(f"the number {text[:20]} is too large")
    return value


def _constant(text: str) -> float:
    raise BadInput(f"{text} is not a number that is accepted")


def _shallow(document: Any) -> None:
    """Level by level, so that depth is met before the interpreter's recursion limit."""
    level = [document] if isinstance(document, dict | list) else []
    for _ in range(MAX_DEPTH):
        children = (child for value in level for child in (value.values() if isinstance(value, dict) else value))
        level = [child for child in children if isinstance(child, dict | list)]
    if level:
        raise BadInput(f"nested more than {MAX_DEPTH} levels deep")


def _decode(content: str | bytes) -> str:
    if isinstance(content, str):
        return content.removeprefix("\ufeff")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInput(f"not text: byte {error.start} is not UTF-8") from None


def _place(mark: Any) -> str:
    return f"line {mark.line + 1}, column {mark.column + 1}"


def _kind(value: Any) -> str:
    names = {list: "a list", str: "a text", int: "a number", float: "a number", bool: "true or false"}
    return names.get(type(value), "nothing")
