"""The lab's own price file: YAML, hardware class -> price."""

from __future__ import annotations

from pathlib import Path

import yaml
from pydantic import TypeAdapter, ValidationError

from effillm_server.catalog.facts import Price
from effillm_server.contract.sweep import Slug
from effillm_server.errors import BadInput

_PRICES = TypeAdapter(dict[Slug, Price])
_EXAMPLE = "a100: {purchase_usd: 9000, hourly_usd: 1.5, source: our invoice, date: 2026-01-31}"


def read_prices(path: Path) -> dict[str, Price]:
    """Prices by hardware class from `path`. Raises BadInput naming the place, the value and what a line looks like."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise _bad(path, f"cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise _bad(path, f"is not YAML: {' '.join(str(error).split())}") from None
    try:
        return _PRICES.validate_python({} if content is None else content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"] if part != "[key]")
        raise _bad(path, f"{place}: {first['input']!r}: {first['msg']}") from None


def _bad(path: Path, what: str) -> BadInput:
    return BadInput(f"EFFILLM_PRICES: {path} {what}; a line looks like `{_EXAMPLE}`", field="EFFILLM_PRICES")
