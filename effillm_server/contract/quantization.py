"""Quantization by name: an axis value, text or mapping, to one canonical label and back to the options it stands for.

The label is the identity of a quantization everywhere: in cells, digests, rows and figures. It is the method's name and, behind
it, every option that is not at its default: `gptq-b3-g64-act`, `uniform-b4-channel`, `qat-b4@texts/ours.txt`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from functools import lru_cache
from importlib.metadata import entry_points
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, WithJsonSchema

PLUGINS = "effillm.quantization"
TEXT_PATH = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*){0,7}")
LONGEST = 200
DECIMALS = 10  # finer numbers mean nothing to any option, and every digit of one stands in the label

Value = int | float | bool | str


class Quantization(StrEnum):
    """The methods that come with EffiLLM; the first six, alone, are labels too."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"
    INT8 = "int8"
    INT4 = "int4"
    GPTQ = "gptq"
    UNIFORM = "uniform"
    DYNAMIC = "dynamic"
    QAT = "qat"
    INT8_DYNAMIC = "int8-dynamic"
    INT4_WEIGHT_ONLY = "int4-weight-only"


@dataclass(frozen=True)
class Option:
    """One option of a method: how it is spelled in a label and what it may be. `mark` is the word of a flag, else the prefix."""

    mark: str
    kind: Literal["whole", "number", "flag", "choice", "text"]
    default: Value | None = None
    low: float = 0
    high: float = 0
    choices: tuple[Value, ...] = ()
    spelled: Mapping[Value, str] | None = None


_TEXT = Option("@", "text")
_GROUP: dict[Value, str] = {-1: "all"}

METHODS: dict[str, dict[str, Option]] = {
    "fp32": {},
    "fp16": {},
    "bf16": {},
    "int8": {"threshold": Option("t", "number", 6.0, 0, 1000)},
    "int4": {
        "type": Option("", "choice", "nf4", choices=("nf4", "fp4")),
        "double": Option("double", "flag", False),
    },
    "gptq": {
        "bits": Option("b", "whole", 4, choices=(2, 3, 4, 8)),
        "group_size": Option("g", "whole", 128, choices=(-1, 16, 32, 64, 128, 256, 512, 1024), spelled=_GROUP),
        "act_order": Option("act", "flag", False),
        "kernel": Option("", "choice", "auto", choices=("auto", "torch", "aten", "fused")),
        "text": _TEXT,
    },
    "uniform": {"bits": Option("b", "whole", None, 1, 8), "channel": Option("channel", "flag", False)},
    "dynamic": {
        "memory": Option("m", "number", None, 0.03, 1),
        "quality": Option("q", "number", None, 0.0001, 10),
        "text": _TEXT,
    },
    "qat": {
        "bits": Option("b", "whole", None, 2, 8),
        "steps": Option("n", "whole", 100, 1, 100_000),
        "learning_rate": Option("lr", "number", 0.0001, 0.000_000_01, 10),
        "text": _TEXT,
    },
    "int8-dynamic": {},
    "int4-weight-only": {"group_size": Option("g", "whole", 128, choices=(32, 64, 128, 256))},
}
# Options spelled out as soon as any option is named: `gptq` alone takes a checkpoint as it was published.
_ALWAYS = {"gptq": ("bits", "group_size")}
# Options of which a method needs exactly one.
_ONE_OF = {"uniform": ("bits",), "dynamic": ("memory", "quality"), "qat": ("bits",)}


_FIXED_BITS = {
    "fp32": 32, "fp16": 16, "bf16": 16, "int8": 8, "int4": 4, "gptq": 4, "int8-dynamic": 8, "int4-weight-only": 4,
}  # fmt: skip


@dataclass(frozen=True)
class Parsed:
    """A label taken apart. `options` holds every option with its value, empty where the label is a bare name of a plain method."""

    label: str
    method: str
    options: Mapping[str, Value]


def parse(value: Any) -> Parsed:
    """The label and the options of an axis value. Raises ValueError that says what is allowed."""
    if isinstance(value, Mapping):
        return _from_mapping(value)
    if not isinstance(value, str):
        raise ValueError(f"expected a quantization such as int8 or a mapping with the key method, found {value!r:.60}")
    return _from_text(str(value))


@lru_cache(maxsize=10_000)
def method_of(label: str) -> str:
    """The method a label names, itself when it names none that is known."""
    name = _method_name(label)
    return label if name is None else name


def options_of(label: str) -> dict[str, Value]:
    """All options a label stands for, defaults included. Raises ValueError for what is no label."""
    return dict(parse(label).options)


def bits_of(label: str) -> float | None:
    """Bits of one weight in theory, scales left out; None where only a plan can tell."""
    parsed = _known(label)
    if parsed is None:
        return None
    bits = parsed.options.get("bits", _FIXED_BITS.get(parsed.method))
    if parsed.method == "dynamic" and "memory" in parsed.options:
        return 16.0 * float(parsed.options["memory"])  # a share of half precision
    return None if bits is None else float(bits)


def _known(label: str) -> Parsed | None:
    try:
        return parse(label)
    except ValueError:
        return None


@lru_cache(maxsize=10_000)
def _from_text(text: str) -> Parsed:
    method = _method_name(text) if len(text) <= LONGEST else None
    if method is None:
        if _is_plugin(text):
            return Parsed(text, text, {})
        raise ValueError(_no_method(text))
    rest, at, path = text[len(method) :].partition("@")
    if at and "text" not in METHODS[method]:
        raise ValueError(f"{text!r}: {method} takes no text")
    options = [_option_of_word(method, word) for word in rest.split("-")[1:]] + ([("text", path)] if at else [])
    named: dict[str, Value] = {}
    for name, value in options:
        if name in named:
            raise ValueError(f"{text!r}: {name} stands twice")
        named[name] = value
    return _checked(method, named, text)


def _from_mapping(value: Mapping[Any, Any]) -> Parsed:
    method = value.get("method")
    if not isinstance(method, str) or method not in METHODS:
        if isinstance(method, str) and _is_plugin(method):
            if len(value) > 1:
                raise ValueError(f"{method} comes from another package and takes no options: its name is its label")
            return Parsed(method, method, {})
        raise ValueError(_no_method(method) if method is not None else f"the key method is missing: {_allowed()}")
    known = METHODS[method]
    for key in value:
        if key != "method" and key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(
                f"{method} has no option {str(key)[:60]!r}.{hint} Its options: {', '.join(known) or 'none'}"
            )
    return _checked(method, {str(key): each for key, each in value.items() if key != "method"}, method)


def _checked(method: str, named: Mapping[str, Any], shown: str) -> Parsed:
    known = METHODS[method]
    values = {name: _value(f"{shown}: {name}", known[name], value) for name, value in named.items()}
    one_of = _ONE_OF.get(method, ())
    if one_of and sum(name in values for name in one_of) != 1:
        example = f"{method}-{known[one_of[0]].mark}{'0.5' if known[one_of[0]].kind == 'number' else '4'}"
        raise ValueError(
            f"{shown!r} needs {' or '.join(one_of)}{', one of the two' if len(one_of) > 1 else ''}, as in {example}"
        )
    if method == "gptq" and not values:
        return Parsed("gptq", method, {})
    full = {name: option.default for name, option in known.items() if option.default is not None} | values
    always = _ALWAYS.get(method, ())
    is_nested = method == "int4" and full["double"]  # the type goes before `double`, as bitsandbytes' users say it
    words = [
        _word(option, full[name])
        for name, option in known.items()
        if name in full and option.kind != "text"
        and (name in always or full[name] != option.default or (is_nested and name == "type"))
    ]  # fmt: skip
    text = f"@{full['text']}" if "text" in full else ""
    return Parsed("-".join([method, *words]) + text, method, full)


def _value(where: str, option: Option, value: Any) -> Value:
    match option.kind:
        case "flag":
            if isinstance(value, bool):
                return value
            raise ValueError(f"{where} is true or false, found {value!r:.60}")
        case "text":
            if (
                isinstance(value, str)
                and TEXT_PATH.fullmatch(value)
                and ".." not in value
                and len(value) <= LONGEST // 2
            ):
                return value
            raise ValueError(f"{where} is the path of a file below EFFILLM_MODEL_ROOT, found {value!r:.60}")
        case "choice":
            if value in option.choices:
                return str(value)
            raise ValueError(f"{where} is one of {', '.join(map(str, option.choices))}, found {value!r:.60}")
    return _number(where, option, value)


def _number(where: str, option: Option, value: Any) -> int | float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if option.choices:
        if is_number and value in option.choices:
            return int(value)
        raise ValueError(f"{where} is one of {', '.join(map(str, option.choices))}, found {value!r:.60}")
    # A NaN lies in no range.
    is_whole = option.kind == "number" or isinstance(value, int)
    if not is_number or not is_whole or not option.low <= value <= option.high:
        noun = "a whole number" if option.kind == "whole" else "a number"
        raise ValueError(f"{where} is {noun} from {option.low:g} to {option.high:g}, found {value!r:.60}")
    return round(float(value), DECIMALS) if option.kind == "number" else int(value)


def _word(option: Option, value: Value) -> str:
    if option.kind == "flag":
        return option.mark
    if option.spelled and value in option.spelled:
        return option.mark + option.spelled[value]
    # Without an exponent: its sign would be taken for the hyphen between two options.
    return option.mark + (f"{Decimal(repr(value)).normalize():f}" if option.kind == "number" else str(value))


def _option_of_word(method: str, word: str) -> tuple[str, Value]:
    for name, option in METHODS[method].items():
        match option.kind:
            case "flag" if word == option.mark:
                return name, True
            case "choice" if word in option.choices:
                return name, word
            case "whole" | "number" if word.startswith(option.mark):
                rest = word.removeprefix(option.mark)
                for value, spelling in (option.spelled or {}).items():
                    if rest == spelling:
                        return name, value
                if re.fullmatch(r"\d{1,12}", rest) and option.kind == "whole":
                    return name, int(rest)
                if re.fullmatch(r"\d{1,12}(\.\d{1,30})?", rest) and option.kind == "number":
                    return name, float(rest)
    spelled = ", ".join(_spelling(option) for option in METHODS[method].values())
    raise ValueError(f"{word[:60]!r} is no option of {method}. Its options in a label: {spelled or 'none'}")


def _spelling(option: Option) -> str:
    if option.kind == "choice":
        return " or ".join(map(str, option.choices))
    return option.mark + {"flag": "", "text": "FILE"}.get(option.kind, "N")


def _method_name(text: str) -> str | None:
    """The longest method's name that `text` begins with: `int8-dynamic` is not `int8` with an option."""
    fitting = [name for name in METHODS if text == name or text.startswith((f"{name}-", f"{name}@"))]
    return max(fitting, key=len, default=None)


def _is_plugin(name: str) -> bool:
    """Whether an installed package registers a method of this name; it is not imported."""
    return re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,63}", name) is not None and bool(entry_points(group=PLUGINS, name=name))


def _no_method(value: Any) -> str:
    near = difflib.get_close_matches(str(value)[:LONGEST], METHODS, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"{value!r:.62} is not allowed.{hint} {_allowed()}"


def _allowed() -> str:
    return f"Choose from {', '.join(METHODS)}; options go behind the name (gptq-b4-g128) or into a mapping with the key method"


def label(value: Any) -> str:
    """The canonical label of an axis value. Raises ValueError."""
    return parse(value).label


def label_or_method(value: Any) -> str:
    """A label or a method's bare name: what an exclusion may name. Raises ValueError."""
    return value if isinstance(value, str) and value in METHODS else label(value)


_NAMES = "|".join(sorted(METHODS, key=len, reverse=True))
_PATTERN = rf"^({_NAMES})([-@][A-Za-z0-9._/@-]+)?$"
_SCHEMA = {
    "anyOf": [
        {"type": "string", "pattern": _PATTERN, "description": "a method, its options behind it: gptq-b4-g128"},
        {
            "type": "object",
            "properties": {"method": {"enum": list(METHODS)}},
            "required": ["method"],
            "description": "a method with its options: {method: gptq, bits: 4, group_size: 128}",
        },
    ]
}
QuantizationChoice = Annotated[str, BeforeValidator(label), WithJsonSchema(_SCHEMA)]
QuantizationFilter = Annotated[str, BeforeValidator(label_or_method), WithJsonSchema(_SCHEMA)]
