"""How this process answers: every request by route, status and time, for its metrics."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Histogram, disable_created_metrics
from starlette.types import Scope

# From a page out of memory to an analysis of ten thousand rows.
BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 15, 60)
# Streams last as long as somebody listens, which says nothing about how fast this answers.
STREAMS = frozenset({"/v1/events"})


class Requests:
    """A registry of this process's own, and the histogram of its answers in it."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a series per series, for a format that nobody asks for
        self.registry = CollectorRegistry()
        self._seconds = Histogram(
            "effillm_api_request_seconds",
            "Time to answer a request, by route.",
            ("method", "route", "status"),
            buckets=BUCKETS_S,
            registry=self.registry,
        )

    def seen(self, scope: Scope, status: int, seconds: float) -> None:
        """Count a request. What names no route counts as one, or every scanner would add labels of its own."""
        route = getattr(scope.get("route"), "path", None) or "none"
        if route not in STREAMS:
            self._seconds.labels(_method(scope), route, str(status)).observe(seconds)


def _method(scope: Scope) -> str:
    method = str(scope["method"])
    return method if method in {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"} else "other"
