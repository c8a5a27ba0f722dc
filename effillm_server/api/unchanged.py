"""Requests to cancel or retry that change nothing: refused or answered once more, and counted."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from effillm_server.errors import Conflict
from effillm_server.lifecycle import SweepState

ACTIONS = ("job.cancel", "job.retry", "sweep.cancel", "sweep.retry")


class Unchanged:
    """How many requests of each action changed nothing since this process started."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._counted = Counter(dict.fromkeys(ACTIONS, 0))

    def note(self, action: str) -> None:
        with self._guard:
            self._counted[action] += 1

    @contextmanager
    def refusals(self, action: str) -> Iterator[None]:
        """Counts a refusal that leaves this block."""
        try:
            yield
        except Conflict:
            self.note(action)
            raise

    @property
    def counts(self) -> dict[tuple[str, ...], float]:
        """By action, for the metrics."""
        with self._guard:
            return {(action,): float(count) for action, count in self._counted.items()}


def why(action: str, state: SweepState) -> str:
    """Why a request about a whole sweep found nothing to change."""
    if action == "sweep.retry":
        return "no job of the sweep has failed or was cancelled: there is nothing to run again"
    if state is SweepState.CANCELLED:
        return "the sweep was cancelled already: nothing of it is left to cancel"
    return "the sweep has ended already: nothing of it is left to cancel"
