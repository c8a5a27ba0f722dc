"""Validation errors in words: the key, the value found, what is allowed, and the nearest name where it looks like a typo."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from effillm_server.contract.quality import QualityPlan
from effillm_server.contract.sweep import Bounds, Exclusion, MeasurementPlan, ModelChoice, SweepDefinition

MAX_PROBLEMS = 20
MAX_SHOWN = 60

# The model behind each mapping of a sweep definition, by the names on the way to it.
_MODELS: dict[tuple[str, ...], type[BaseModel]] = {
    (): SweepDefinition,
    ("models",): ModelChoice,
    ("measurement",): MeasurementPlan,
    ("measurement", "warmup"): Bounds,
    ("measurement", "iterations"): Bounds,
    ("exclude",): Exclusion,
    ("quality",): QualityPlan,
}


def describe(error: ValidationError, document: Mapping[str, Any]) -> tuple[str, str | None]:
    """One message for everything wrong with a sweep definition, and the dotted place of the first problem."""
    problems = each(error, document)
    count = error.error_count()
    lines = [f"{place}: {said}" for place, said in problems]
    if count > len(problems):
        lines.append(f"and {count - len(problems)} more")
    message = lines[0] if len(lines) == 1 else "\n".join([f"{count} problems:", *(f"- {line}" for line in lines)])
    return message, problems[0][0]


def each(error: ValidationError, document: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The first problems, each by itself: its dotted place and what is wrong there, in words."""
    found = error.errors(include_url=False)[:MAX_PROBLEMS]
    return [(_place(problem, document), _explain(problem)) for problem in found]


def _place(problem: ErrorDetails, document: Mapping[str, Any]) -> str:
    """`models[1].weights`; the index is left out where a scalar stood for a list of one."""
    place = ""
    value: Any = document
    for part in problem["loc"]:
        if isinstance(part, int):
            if isinstance(value, list):
                place += f"[{part}]"
                value = value[part] if part < len(value) else None
        else:
            place += f".{plain(part)}" if place else plain(part)
            value = value.get(part) if isinstance(value, Mapping) else None
    return place or "sweep"


def plain(text: str) -> str:
    """`text` short enough to print and free of what UTF-8 or a terminal cannot take: keys come from the user."""
    clean = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[:MAX_SHOWN])
    return clean if len(text) <= MAX_SHOWN else clean + "..."


def _explain(problem: ErrorDetails) -> str:
    explain = _EXPLAIN.get(problem["type"])
    return f"{_shown(problem['input'])}: {problem['msg']}" if explain is None else explain(problem)


def _unknown_key(problem: ErrorDetails) -> str:
    *parents, key = problem["loc"]
    model = _MODELS.get(tuple(part for part in parents if isinstance(part, str)))
    known = list(model.model_fields) if model else []
    return f"unknown key {_shown(key)}.{_nearest(str(key), known)} Allowed here: {', '.join(known)}"


def _unknown_value(problem: ErrorDetails) -> str:
    known = re.findall(r"'([^']*)'", problem["ctx"]["expected"]) or [problem["ctx"]["expected"]]
    value = problem["input"]
    hint = _nearest(value, known) if isinstance(value, str) else ""
    return f"{_shown(value)} is not allowed.{hint} Choose from {', '.join(known)}"


def _missing(problem: ErrorDetails) -> str:
    return "this key is missing"


def _own_words(problem: ErrorDetails) -> str:
    return str(problem["ctx"]["error"])


def _empty_axis(problem: ErrorDetails) -> str:
    return "the list is empty; give at least one value or, where it has a default, leave the key out"


def _too_many(problem: ErrorDetails) -> str:
    return f"more than {problem['ctx']['max_length']:,} values"


def _pattern(problem: ErrorDetails) -> str:
    return f"{_shown(problem['input'])} is not a name that is accepted here: it must match {problem['ctx']['pattern']}"


def _expected(what: str) -> Callable[[ErrorDetails], str]:
    return lambda problem: f"expected {what}, found {_shown(problem['input'])}"


def _bound(key: str, words: str) -> Callable[[ErrorDetails], str]:
    return lambda problem: f"expected a number {words} {problem['ctx'][key]:,}, found {_shown(problem['input'])}"


_EXPLAIN: dict[str, Callable[[ErrorDetails], str]] = {
    "extra_forbidden": _unknown_key,
    "enum": _unknown_value,
    "literal_error": _unknown_value,
    "missing": _missing,
    "value_error": _own_words,
    "too_short": _empty_axis,
    "too_long": _too_many,
    "string_pattern_mismatch": _pattern,
    "string_type": _expected("a text"),
    "string_unicode": _expected("a text"),
    "string_too_short": _expected("a text that is not empty"),
    "string_too_long": lambda problem: f"longer than {problem['ctx']['max_length']} characters",
    "int_type": _expected("a whole number"),
    "int_parsing": _expected("a whole number"),
    "int_from_float": _expected("a whole number"),
    "float_type": _expected("a number"),
    "float_parsing": _expected("a number"),
    "finite_number": _expected("a finite number"),
    "model_type": _expected("a mapping"),
    "tuple_type": _expected("a list"),
    "greater_than": _bound("gt", "above"),
    "greater_than_equal": _bound("ge", "of at least"),
    "less_than": _bound("lt", "below"),
    "less_than_equal": _bound("le", "of at most"),
}


def _nearest(value: str, known: list[str]) -> str:
    near = difflib.get_close_matches(value, known, n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def _shown(value: Any) -> str:
    # Only the beginning is formatted: a hostile value must not cost time to be quoted.
    if isinstance(value, list | tuple | dict) and len(value) > 10:
        return f"a {'mapping' if isinstance(value, dict) else 'list'} of {len(value):,}"
    text = repr(value[:MAX_SHOWN] if isinstance(value, str) else value)
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 3] + "..."
