"""The result rows of a sweep as exports and the analysis read them: page by page, filtered on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any

from fastapi import Depends, Query

from effillm_server.analysis import dialects
from effillm_server.analysis.filters import FILTERABLE, Filters, matching, parse_filters
from effillm_server.analysis.rows import row
from effillm_server.api.services import Services
from effillm_server.errors import BadInput
from effillm_server.ledger import queries
from effillm_server.records import ResultRecord

PAGE = 200
# All filters together, percent-encoded, fit into the head of a request.
LONGEST_FILTER = 200

Row = dict[str, Any]
Rows = Iterator[Row]
MakeRow = Callable[[ResultRecord, Mapping[str, Any] | None], Row]


def spoken_filters(texts: Sequence[str]) -> Filters:
    """`["batch_size=1,4", "hardware=cpu"]` as typed values by axis. Raises BadInput for what is no filter."""
    found: dict[str, list[str]] = {}
    for text in texts:
        axis, equals, values = text.partition("=")
        if not equals or not values:
            raise BadInput(f"{text!r} is not a filter: write AXIS=VALUE or AXIS=VALUE,VALUE", field="filter")
        found.setdefault(axis.strip(), []).extend(values.split(","))
    return parse_filters(found)


def _asked(
    texts: Annotated[
        list[Annotated[str, Query(max_length=LONGEST_FILTER)]] | None,
        Query(
            alias="filter",
            max_length=len(FILTERABLE),
            description="only rows with these values, `axis=value` or `axis=value,value`; several are combined. "
            f"Axes: {', '.join(FILTERABLE)}",
            examples=[["batch_size=1,4"]],
        ),
    ] = None,
) -> Filters:
    return spoken_filters(texts or ())


Asked = Annotated[Filters, Depends(_asked)]


def stream(served: Services, sweep_id: str, filters: Filters, make: MakeRow = row) -> Rows:
    """The rows of a sweep in its order, no transaction held while a page is on its way to the reader."""
    with served.reading() as connection:
        ceilings = {device.id: device.ceiling for device in queries.devices(connection)}
    behind = -1
    while True:
        with served.reading() as connection:
            results = queries.results(connection, sweep_id, behind, PAGE, with_samples=True)
        for result in results:
            made = make(result, ceilings.get(result.device_id or ""))
            if matching([made], filters):
                yield made
        if len(results) < PAGE:
            return
        behind = results[-1].job.ordinal


def dialect_lines(served: Services, sweep_id: str, filters: Filters, dialect: str) -> Rows:
    """The numbers of a sweep's measured jobs in the words of another tool, one line each."""

    def with_lines(result: ResultRecord, ceiling: Mapping[str, Any] | None) -> Row:
        made = row(result, ceiling)
        return made | {"lines": list(dialects.lines(dialect, made, result))}

    for made in stream(served, sweep_id, filters, with_lines):
        yield from made["lines"]
