"""Many rows into a table by COPY, written while they are made, so that memory stays flat and no statement runs long."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

from sqlalchemy import Connection

from effillm_server.ledger.driver import cursor

# Of one statement, which must end within the statement time-out of a busy server.
CHUNK_ROWS = 50_000
# Of one message: the server takes it in while the next one is made.
MESSAGE_ROWS = 200

_ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})


def copy_rows(c: Connection, table: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> int:
    """Append `rows` to `table` and return how many there were. Values are None, numbers, booleans, text or lists of integers."""
    statement = f"COPY {table} ({', '.join(columns)}) FROM STDIN"
    total = 0
    iterator = iter(rows)
    with cursor(c, statement) as opened:
        while True:
            chunk = _Lines(islice(iterator, CHUNK_ROWS))
            try:
                opened.copy_expert(statement, chunk)
            except Exception:
                # The driver tells the server why it got no more, and us only what the server made of that.
                if chunk.failed is not None:
                    raise chunk.failed from None
                raise
            total += chunk.rows
            if chunk.rows < CHUNK_ROWS:
                return total


class _Lines:
    """Rows as the file the driver reads from. `rows` have been read so far; `failed` is what making one raised."""

    def __init__(self, rows: Iterator[Sequence[Any]]) -> None:
        self._rows = rows
        self.rows = 0
        self.failed: Exception | None = None

    def read(self, _size: int = -1) -> str:
        """The next lines, as many as go into a message; empty at the end."""
        try:
            lines = [_line(row) for row in islice(self._rows, MESSAGE_ROWS)]
        except Exception as error:
            self.failed = error
            raise
        self.rows += len(lines)
        return "".join(lines)


def _line(row: Sequence[Any]) -> str:
    return "\t".join([_field(value) for value in row]) + "\n"


def _field(value: Any) -> str:
    if value is None:
        return "\\N"
    if isinstance(value, str):
        # Almost nothing needs escaping, and finding out is ten times cheaper than doing it.
        return value if value.isprintable() and "\\" not in value else str(value).translate(_ESCAPES)
    if isinstance(value, list | tuple):
        return "{" + ",".join(map(str, value)) + "}"
    return str(value)
