"""The submit form: its fields, what was typed, and the definition document made of them; each problem at its field. Pure."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from effillm_server.contract.problems import each
from effillm_server.contract.sweep import SweepDefinition

# The plain names; others, with options, are typed beside them.
PRECISIONS = ("fp32", "fp16", "bf16", "int8", "int4", "gptq")
LISTS = ("hardware", "quantization", "workload", "engine")
NUMBERS = ("batch_size", "sequence_length", "generate_tokens")
PLAN = (
    "warmup_min",
    "warmup_max",
    "iterations_min",
    "iterations_max",
    "repeats",
    "relative_half_width",
    "time_limit_s",
)
TEXTS = (
    "name",
    "models",
    "weights",
    "more_quantization",
    "runtime",
    "priority",
    "visibility",
    "isolation",
    "exclude",
    "quality",
)
FIELDS = (*TEXTS, *LISTS, *NUMBERS, *PLAN)
DEFAULTS: dict[str, list[str]] = {
    "name": [""], "models": ["facebook/opt-125m"], "weights": ["pretrained"], "quantization": ["fp32"],
    "batch_size": ["1, 2, 4, 8"], "sequence_length": ["128, 512"], "generate_tokens": ["256"], "workload": ["synthetic"],
    "engine": ["transformers"], "runtime": ["default"], "warmup_min": ["3"], "warmup_max": ["10"], "iterations_min": ["10"],
    "iterations_max": ["30"], "repeats": ["1"], "relative_half_width": ["0.02"], "time_limit_s": ["1800"],
    "priority": ["0"], "visibility": ["lab"], "isolation": ["group"],
}  # fmt: skip
_SEPARATORS = re.compile(r"[,\s]+")
_INTEGER = re.compile(r"[+-]?[0-9]{1,18}")
# The place of a problem in the document, and the field it was typed into.
PLACES = (
    ("measurement.warmup.max", "warmup_max"), ("measurement.warmup", "warmup_min"), ("measurement.iterations.max", "iterations_max"),
    ("measurement.iterations", "iterations_min"), ("measurement.repeats", "repeats"),
    ("measurement.relative_half_width", "relative_half_width"), ("measurement", "time_limit_s"),
)  # fmt: skip
RULES = {"warmup": "warmup_min", "iterations": "iterations_min"}

Fields = Mapping[str, list[str]]


@dataclass(frozen=True)
class Read:
    """A form that was read: the definition, or what stands against it by field; "" is for what belongs to no field."""

    definition: SweepDefinition | None
    errors: dict[str, list[str]] = field(default_factory=dict)


def read(fields: Fields) -> Read:
    """The definition in a form, or every problem at its field."""
    document = document_of(fields)
    try:
        return Read(SweepDefinition.model_validate(document))
    except ValidationError as error:
        errors: dict[str, list[str]] = {}
        for place, message in each(error, document):
            said = errors.setdefault(field_of(place, message), [])
            if message not in said:
                said.append(message)
        return Read(None, errors)


def document_of(fields: Fields) -> dict[str, Any]:
    """The document of a form. What is no number stays as it was typed, so that the contract says what it expected."""

    def text(name: str) -> str:
        return fields.get(name, [""])[0].strip()

    weights = text("weights")
    models = [line for line in _SEPARATORS.split(text("models")) if line]
    document: dict[str, Any] = {
        "name": text("name"),
        "models": [{"id": model, "weights": weights} if weights != "pretrained" else model for model in models],
    }
    for name in LISTS:
        document[name] = [value for value in fields.get(name, []) if value]
    document["quantization"] += [value for value in _SEPARATORS.split(text("more_quantization")) if value]
    for name in NUMBERS:
        document[name] = [_whole(part) for part in _SEPARATORS.split(text(name)) if part]
    document["runtime"] = [part for part in _SEPARATORS.split(text("runtime")) if part]
    document["measurement"] = {
        "warmup": {"min": _whole(text("warmup_min")), "max": _whole(text("warmup_max"))},
        "iterations": {"min": _whole(text("iterations_min")), "max": _whole(text("iterations_max"))},
        "repeats": _whole(text("repeats")),
        "relative_half_width": text("relative_half_width"),
        "time_limit_s": text("time_limit_s"),
    }
    document |= {"quality": {}} if fields.get("quality") else {}
    document |= {"priority": _whole(text("priority")), "visibility": text("visibility"), "isolation": text("isolation")}
    return document


def fields_of(definition: SweepDefinition) -> Fields:
    """What would have to be typed for this definition; exclusions and single models' settings are beyond the form."""
    plan = definition.measurement
    weights = {str(choice.weights) for choice in definition.models}
    shown = {
        "name": [definition.name], "models": ["\n".join(choice.id for choice in definition.models)],
        "weights": [weights.pop() if len(weights) == 1 else "pretrained"],
        **{name: [str(value) for value in getattr(definition, name)] for name in LISTS},
        **{name: [", ".join(map(str, getattr(definition, name)))] for name in NUMBERS},
        "runtime": [", ".join(definition.runtime)], "warmup_min": [str(plan.warmup.min)], "warmup_max": [str(plan.warmup.max)],
        "iterations_min": [str(plan.iterations.min)], "iterations_max": [str(plan.iterations.max)],
        "repeats": [str(plan.repeats)], "relative_half_width": [f"{plan.relative_half_width:g}"],
        "time_limit_s": [f"{plan.time_limit_s:g}"], "priority": [str(definition.priority)],
        "visibility": [str(definition.visibility)], "isolation": [str(definition.isolation)],
        "quality": ["on"] if definition.quality else [],
    }  # fmt: skip
    return DEFAULTS | shown


def field_of(place: str | None, message: str = "") -> str:
    """The field of the form that a place in the document came from; "" where it came from none."""
    if not place:
        return ""
    if place == "measurement":
        # A rule about several keys of the plan: its words begin with the key that breaks it.
        return RULES.get(message.partition(" ")[0], "time_limit_s")
    for beginning, name in PLACES:
        if place.startswith(beginning):
            return name
    name = re.split(r"[.\[]", place)[0]
    return name if name in FIELDS else ""


def digest(definition: SweepDefinition) -> str:
    """Names a definition, so that what is stored is what was previewed."""
    return hashlib.sha256(definition.model_dump_json().encode()).hexdigest()[:32]


def _whole(text: str) -> int | str:
    return int(text) if _INTEGER.fullmatch(text) else text
