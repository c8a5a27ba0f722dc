"""Where analyses are made: one at a time, a few in line, the rows of the last sweeps at hand."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any

from effillm_server.errors import Unavailable

# Each waits in a thread of the server, and the other routes need some as well.
IN_LINE = 15
KEPT_ROWS = 10_000

Rows = list[dict[str, Any]]


class Desk:
    """Analyses are all processor time: two at once would only both be late, and keep the rest of the server waiting."""

    def __init__(self, in_line: int = IN_LINE, kept_rows: int = KEPT_ROWS) -> None:
        self.kept_rows = kept_rows
        self._places = threading.BoundedSemaphore(in_line + 1)
        self._turn = threading.Lock()
        self._rows: OrderedDict[str, tuple[Hashable, Rows]] = OrderedDict()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """The desk for oneself, after those before. Raises Unavailable when too many wait already."""
        if not self._places.acquire(blocking=False):
            raise Unavailable("the server is making as many analyses as it takes on; try again in some seconds")
        try:
            with self._turn:
                yield
        finally:
            self._places.release()

    def rows(self, sweep_id: str, version: Hashable, read: Callable[[], Rows]) -> Rows:
        """The rows of a sweep in this version, read if they are not at hand. For whoever has the turn."""
        kept = self._rows.pop(sweep_id, None)
        found = kept[1] if kept is not None and kept[0] == version else read()
        self._rows[sweep_id] = (version, found)
        while sum(len(rows) for _, rows in self._rows.values()) > self.kept_rows:
            self._rows.popitem(last=False)
        return found
