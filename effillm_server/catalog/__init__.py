"""The catalog: models, hardware classes with prices, workloads; data beside this file and one loader."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import Field, ValidationError

from effillm_server.catalog.facts import HardwareFacts, ModelFacts, Price, Prompt, Turn, Workload, model_key
from effillm_server.catalog.prices import read_prices
from effillm_server.contract.base import Contract
from effillm_server.errors import BadInput

__all__ = [
    "TOKENIZER",
    "Catalog",
    "HardwareFacts",
    "ModelFacts",
    "Price",
    "Prompt",
    "Turn",
    "Workload",
    "hardware_class",
    "load",
    "model_key",
    "prices",
    "read_workload",
]

HERE = Path(__file__).parent
TOKENIZER = HERE / "tokenizer.json"
WORKLOADS = {
    "short-qa": "Short questions with factual answers",
    "summarization": "News articles and scientific abstracts to summarise",
    "creative-writing": "Openings and instructions for stories and poems",
    "code-generation": "Programming tasks in several languages",
    "chat": "Conversations of several turns",
    "legal": "Legal analysis",
    "scientific": "Scientific reasoning",
}
MAX_WORKLOAD_BYTES = 16 * 2**20

_VENDOR = re.compile(
    r"\b(nvidia|geforce|tesla|quadro|amd|intel|radeon|instinct|corporation)\b|\((r|tm|c)\)", re.IGNORECASE
)

F = TypeVar("F", bound=Contract)


class Catalog(Contract):
    """Everything the catalog knows, by id or name. The workload `synthetic` is not in it: it has no prompts."""

    models: dict[str, ModelFacts] = Field(default_factory=dict)
    hardware: dict[str, HardwareFacts] = Field(default_factory=dict)
    workloads: dict[str, Workload] = Field(default_factory=dict)


@cache
def load() -> Catalog:
    """The catalog shipped with the package, read once."""
    models = [ModelFacts.model_validate(entry) for entry in _yaml("models.yaml")]
    hardware = [HardwareFacts.model_validate(entry) for entry in _yaml("hardware.yaml")]
    return Catalog(
        models={facts.id: facts for facts in models},
        hardware={facts.name: facts for facts in hardware},
        workloads={
            name: read_workload(HERE / "workloads" / f"{name}.jsonl", name, title) for name, title in WORKLOADS.items()
        },
    )


def hardware_class(device_name: str) -> str:
    """The class of a device by the name its driver gives: the catalog's patterns first, else a slug of the name itself.

    `NVIDIA GeForce RTX 4090` is `rtx-4090`, `NVIDIA L40S` is `l40s`. Raises BadInput for a name without a letter or digit.
    """
    bare = " ".join(_VENDOR.sub(" ", device_name).split())
    for facts in load().hardware.values():
        if any(re.fullmatch(pattern, bare, re.IGNORECASE) for pattern in facts.device_names):
            return facts.name
    slug = re.sub(r"[^a-z0-9]+", "-", bare.lower()).strip("-")[:64].strip("-")
    if not slug:
        raise BadInput(f"the device name {device_name!r} has no letter or digit to make a hardware class from")
    return slug


def prices(path: Path | None = None) -> dict[str, Price]:
    """Price by hardware class: the catalog's, each replaced whole by the entry of the lab's own file where it has one."""
    known = {
        facts.name: Price(
            purchase_usd=facts.purchase_usd,
            hourly_usd=facts.hourly_usd,
            source=facts.price_source,
            date=facts.price_date,
        )
        for facts in load().hardware.values()
        if facts.purchase_usd is not None or facts.hourly_usd is not None
    }
    return known if path is None else known | read_prices(path)


def read_workload(path: Path, name: str, title: str) -> Workload:
    """A workload from a file with one JSON prompt a line. Raises BadInput that names the file and line."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise BadInput(f"{path.name}: the prompt file cannot be read: {error.strerror}") from None
    if len(raw) > MAX_WORKLOAD_BYTES:
        raise BadInput(f"{path.name}: {len(raw):,} bytes, a prompt file has at most {MAX_WORKLOAD_BYTES:,}")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadInput(
            f"{path.name}: not text: byte {error.start} is not UTF-8; expected one JSON prompt a line"
        ) from None
    prompts = [
        _prompt(path.name, number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()
    ]
    if not prompts:
        raise BadInput(f"{path.name}: the prompt file is empty; expected one JSON prompt a line")
    try:
        return Workload(name=name, title=title, prompts=tuple(prompts))
    except ValidationError as error:
        raise BadInput(f"{path.name}: {error.errors()[0]['msg']}") from None


def _prompt(file: str, number: int, line: str) -> Prompt:
    expected = 'expected an object such as {"id": "q1", "text": "..."}'
    if "\0" in line:
        raise BadInput(f"{file} line {number}: not text: it has a zero byte; {expected}")
    try:
        return Prompt.model_validate(json.loads(line))
    except json.JSONDecodeError as error:
        raise BadInput(f"{file} line {number}: not JSON ({error.msg} at column {error.colno}); {expected}") from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise BadInput(f"{file} line {number}: {place + ': ' if place else ''}{first['msg']}; {expected}") from None


def _yaml(name: str) -> Any:
    return yaml.safe_load((HERE / name).read_text(encoding="utf-8"))
