"""The rows an analysis stands on: those of a sweep that pass a filter, from the desk where they are at hand."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from effillm_server import catalog
from effillm_server.analysis.filters import FILTERABLE, Filters, matching
from effillm_server.analysis.rows import row_with_series
from effillm_server.api.rows import Row, spoken_filters, stream
from effillm_server.api.services import Services, sweep_of
from effillm_server.errors import BadInput
from effillm_server.ledger import queries
from effillm_server.records import ResultRecord, SweepRecord, Viewer

if TYPE_CHECKING:
    from effillm_server.analysis import Facts

# A row with its series takes some 25 kB; an analysis looks at all of its rows at once.
MAX_ROWS = 10_000
_NEXT_FILTER = re.compile(r":(?=[a-z_]+=)")


@dataclass(frozen=True)
class Gathered:
    """Rows of one sweep that pass `filters`."""

    sweep: SweepRecord
    filters: Filters
    rows: list[Row]


def side(text: str, field: str) -> tuple[str, Filters]:
    """Sweep and filters of one side of a comparison: `SWEEP` or `SWEEP:axis=value,value:axis=value`."""
    sweep_id, *filters = _NEXT_FILTER.split(text)
    if re.fullmatch(r"[A-Za-z0-9_-]{1,64}", sweep_id) is None:
        raise BadInput(
            f"{text[:100]!r} is no side of a comparison: write SWEEP or SWEEP:AXIS=VALUE,VALUE:AXIS=VALUE; axes are "
            f"{', '.join(FILTERABLE)}",
            field=field,
        )
    return sweep_id, spoken_filters(filters)


def gather(served: Services, viewer: Viewer, sweep_id: str, filters: Filters) -> Gathered:
    """The rows of a sweep that pass, all in memory. For whoever has the desk's turn.

    Raises NotFound, and BadInput when nothing passes or too much does.
    """
    with served.reading() as connection:
        sweep = sweep_of(connection, sweep_id, viewer)
        ceilings = {device.id: device.ceiling for device in queries.devices(connection)}
    if sweep.total > MAX_ROWS:
        rows = _read(served, sweep, filters)
        if not rows and filters:
            raise BadInput(f"no row of sweep {sweep_id} has {_words(filters)}", field="filter")
        return Gathered(sweep, filters, rows)
    version = (
        *sorted(sweep.counts.items()), *sorted(sweep.reasons.items()), sweep.device_seconds,
        json.dumps(ceilings, sort_keys=True),
    )  # fmt: skip
    everything = served.desk.rows(sweep_id, version, lambda: _read(served, sweep, {}))
    kept = [row for row in everything if matching([row], filters)]
    if everything and not kept:
        raise BadInput(_nothing_passes(sweep_id, everything, filters), field="filter")
    return Gathered(sweep, filters, kept)


def facts_of(served: Services, *sides: Gathered, noise_floor: float | None = None) -> Facts:
    """Sizes of the models, prices of the lab, and the noise floor where the caller knows the machine's."""
    from effillm_server.analysis import Facts

    known = Facts.from_catalog(catalog.prices(served.settings.prices))
    if noise_floor is not None:
        known = replace(known, noise_floor=noise_floor, noise_floor_source="as given")
    return known.with_sizes_of(row for side in sides for row in side.rows)


def _read(served: Services, sweep: SweepRecord, filters: Filters) -> list[Row]:
    fingerprints: dict[str | None, Any] = {}

    def make(result: ResultRecord, ceiling: Mapping[str, Any] | None) -> Row:
        made = row_with_series(result, ceiling)
        # One fingerprint for all rows that carry it, instead of a copy each.
        made["fingerprint_detail"] = fingerprints.setdefault(made["fingerprint"], made["fingerprint_detail"])
        return made

    found: list[Row] = []
    for row in stream(served, sweep.id, filters, make):
        if len(found) == MAX_ROWS:
            raise BadInput(
                f"sweep {sweep.id} has {sweep.total:,} jobs and more than {MAX_ROWS:,} pass the filter: an analysis takes at "
                f"most so many; narrow it with filter=AXIS=VALUE, axes are {', '.join(FILTERABLE)}",
                field="filter",
            )
        found.append(row)
    return found


def _nothing_passes(sweep_id: str, rows: list[Row], filters: Filters) -> str:
    """What was asked for, and what there is on the axes where that does not occur at all."""
    absent = []
    for axis, allowed in filters.items():
        present = {row.get(axis) for row in rows}
        if not present & set(allowed):
            shown = sorted(map(str, present - {None}))
            absent.append(f"{axis} is {', '.join(shown[:20]) or 'empty'}{', …' if len(shown) > 20 else ''}")
    there = f"; there {'; '.join(absent)}" if absent else "; no row combines them"
    return f"no row of sweep {sweep_id} has {_words(filters)}{there}"


def _words(filters: Filters) -> str:
    return " and ".join(f"{axis} {' or '.join(map(str, values))}" for axis, values in filters.items())
