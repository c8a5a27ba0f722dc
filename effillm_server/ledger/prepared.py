"""Hot statements, planned once per connection: planning them anew costs more than running them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection

from effillm_server.ledger.driver import cursor

# :name, but not the second colon of a ::cast.
_PARAMETER = re.compile(r"(?<![:\w]):([a-z_]\w*)")


class Statement:
    """SQL with `:name` parameters of the Postgres types given. Prepared on a connection at its first use there.

    Goes past SQLAlchemy's results, which cost a client as much as the statement costs the server. Prepared statements
    belong to the database session, so a pooler between us and Postgres must pool by session.
    """

    def __init__(self, name: str, sql: str, **types: str) -> None:
        self.name = f"effillm_{name}"
        self.parameters = tuple(types)
        places = {parameter: f"${n}" for n, parameter in enumerate(types, 1)}
        used = set(_PARAMETER.findall(sql))
        if used != set(types):
            raise ValueError(f"statement {name}: parameters used and declared differ by {sorted(used ^ set(types))}")
        body = _PARAMETER.sub(lambda match: places[match[1]], sql)
        self._prepare = f"PREPARE {self.name} ({', '.join(types.values())}) AS {body}"
        self._execute = f"EXECUTE {self.name} ({', '.join(['%s'] * len(types))})"

    def __call__(self, c: Connection, values: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Rows of the statement; `values` may hold more than it needs."""
        with cursor(c, self.name) as opened:
            self._run(c, opened, values)
            names = [column.name for column in opened.description]
            return [dict(zip(names, row, strict=True)) for row in opened.fetchall()]

    def count(self, c: Connection, values: Mapping[str, Any]) -> int:
        """Number of rows the statement, which returns none, has written."""
        with cursor(c, self.name) as opened:
            self._run(c, opened, values)
            return int(opened.rowcount)

    def _run(self, c: Connection, opened: Any, values: Mapping[str, Any]) -> None:
        # Lives as long as the database session does; a rollback takes neither away.
        prepared: set[str] = c.info.setdefault("effillm_prepared", set())
        if self.name not in prepared:
            opened.execute(self._prepare)
            prepared.add(self.name)
        opened.execute(self._execute, tuple(values[name] for name in self.parameters))
