"""Rows beside their unquantized partners: of a sweep as it is exported, and of one job."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy

from effillm_server.analysis.facts import UNQUANTIZED
from effillm_server.analysis.filters import Filters
from effillm_server.analysis.rows import row
from effillm_server.api.rows import Row, Rows, stream
from effillm_server.api.services import Services
from effillm_server.ledger import queries
from effillm_server.records import ResultRecord, SweepRecord

# A pair may lie anywhere in a sweep, so it is read a first time for what pairs are made of: a kilobyte a row.
MAX_JOBS = 10_000


def joined(served: Services, sweep: SweepRecord, filters: Filters) -> Rows:
    """The rows of a sweep in its order with the columns PARTNER_TYPES, also where the filter leaves the partner out.

    They stay empty in a sweep of more than MAX_JOBS jobs.
    """
    partners = _beside(served, sweep)
    for made in stream(served, sweep.id, filters):
        yield made | partners.get(made["job"], {})


@dataclass(frozen=True)
class Beside:
    """A job's result with those of its cell and of the same cell unquantized, and the ceilings of the lab's devices."""

    result: ResultRecord
    others: list[ResultRecord]
    ceilings: dict[str, dict[str, Any] | None]

    @classmethod
    def of(cls, connection: sqlalchemy.Connection, result: ResultRecord) -> Beside:
        ceilings = {device.id: device.ceiling for device in queries.devices(connection)}
        return cls(result, queries.beside(connection, result.job, UNQUANTIZED), ceilings)

    def row(self) -> Row:
        """The row of the job with the columns PARTNER_TYPES."""
        made = self._row(self.result)
        if len({other.job.cell.quantization for other in self.others}) < 2:
            return made
        from effillm_server.analysis import partners  # numpy and scipy: for those who ask

        return made | partners.beside(map(self._row, self.others)).get(made["job"], {})

    def _row(self, of: ResultRecord) -> Row:
        return row(of, self.ceilings.get(of.device_id or ""))


def _beside(served: Services, sweep: SweepRecord) -> dict[int, dict[str, Any]]:
    precisions = set(sweep.definition.quantization)
    if sweep.total > MAX_JOBS or len(precisions) < 2 or not precisions & set(UNQUANTIZED):
        return {}
    from effillm_server.analysis import partners  # numpy and scipy: for those who ask

    measured = (made for made in stream(served, sweep.id, {}) if made["throughput_tok_s_mean"] is not None)
    return partners.beside({name: made[name] for name in partners.NEEDED} for made in measured)
