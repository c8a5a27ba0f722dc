"""Filters on rows as people write them: axis and values in words, checked and typed."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from effillm_server.analysis.rows import AXES, COLUMN_TYPES
from effillm_server.errors import BadInput

Row = Mapping[str, Any]
Filters = dict[str, tuple[Any, ...]]
FILTERABLE = (*AXES, "repeat", "device", "fingerprint", "sweep", "verdict")


def parse_filters(texts: Mapping[str, str | Sequence[str]]) -> Filters:
    """`{"batch_size": "1,4", "hardware": ["cpu"]}` as typed values by axis.

    Raises BadInput for an axis that does not exist (with the nearest) and for a value that is not of its type.
    """
    found: Filters = {}
    for axis, given in texts.items():
        if axis not in FILTERABLE:
            near = difflib.get_close_matches(axis, FILTERABLE, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise BadInput(f"no axis {axis!r} to filter by; {hint}There are {', '.join(FILTERABLE)}", field=axis)
        values = given.split(",") if isinstance(given, str) else given
        found[axis] = tuple(_typed(axis, value.strip()) for value in values)
    return found


def matching(rows: Iterable[Row], filters: Mapping[str, tuple[Any, ...]]) -> list[Row]:
    """Rows whose value is among those allowed, on every axis named."""
    return [row for row in rows if all(row.get(axis) in allowed for axis, allowed in filters.items())]


def _typed(axis: str, value: str) -> Any:
    if COLUMN_TYPES[axis] is not int:
        return value
    try:
        return int(value)
    except ValueError:
        raise BadInput(f"{axis} {value!r} is not a whole number", field=axis) from None
