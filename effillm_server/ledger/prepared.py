"""Hot statements, planned once per connection: planning them anew costs more than running them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, CursorResult

# :name, but not the second colon of a ::cast.
_PARAMETER = re.compile(r"(?<![:\w]):([a-z_]\w*)")


class Statement:
    """SQL with `:name` parameters of the Postgres types given. Prepared on a connection at its first use there.

    Prepared statements belong to the database session, so a pooler between us and Postgres must pool by session.
    """

    def __init__(self, name: str, sql: str, **types: str) -> None:
        self.name = f"effillm_{name}"
        self.parameters = tuple(types)
        places = {parameter: f"${n}" for n, parameter in enumerate(types, 1)}
        used = set(_PARAMETER.findall(sql))
        if used != set(types):
            raise ValueError(f"statement {name}: parameters used and declared differ by {sorted(used ^ set(types))}")
        body = _PARAMETER.sub(lambda match: places[match[1]], sql)
        self._prepare = f"PREPARE {self.name} ({', '.join(types.values())}) AS {body}".replace("%", "%%")
        self._execute = f"EXECUTE {self.name} ({', '.join(['%s'] * len(types))})"

    def __call__(self, c: Connection, values: Mapping[str, Any]) -> CursorResult[Any]:
        """Result of the statement; `values` may hold more than it needs."""
        # Lives as long as the database session does; a rollback takes neither away.
        prepared: set[str] = c.info.setdefault("effillm_prepared", set())
        if self.name not in prepared:
            c.exec_driver_sql(self._prepare)
            prepared.add(self.name)
        return c.exec_driver_sql(self._execute, tuple(values[name] for name in self.parameters))
