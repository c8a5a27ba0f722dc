"""What people look at while a large sweep runs: its progress, a page of its jobs, the list of sweeps."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import httpx
import sqlalchemy

from benchmarks.scale import common
from effillm_server.ledger import queries
from effillm_server.ledger.engine import connect
from effillm_server.lifecycle import JobState

PAGE = 100


def measure(url: str, api: str, sweep_id: str, times: int = 200) -> dict[str, Any]:
    """Milliseconds of each, asked of the ledger and over REST."""
    engine = connect(url, "api")
    with engine.connect() as c:
        sweep = queries.sweep(c, sweep_id)
    assert sweep is not None
    dice = random.Random(1)

    def ask(question: Callable[[sqlalchemy.Connection], Any]) -> Callable[[], None]:
        def action() -> None:
            with engine.connect() as c:
                question(c)

        return action

    def anywhere() -> int:
        return dice.randrange(max(1, sweep.total - PAGE))

    figures = {
        "read.sweep_jobs": sweep.total,
        **_milliseconds("read.progress", ask(lambda c: queries.sweep(c, sweep_id)), times),
        **_milliseconds("read.page", ask(lambda c: queries.jobs(c, sweep_id, anywhere(), PAGE)), times),
        **_milliseconds("read.page_pending",
            ask(lambda c: queries.jobs(c, sweep_id, anywhere(), PAGE, JobState.PENDING)), times),
        **_milliseconds("read.totals", ask(queries.counts), times),
    }  # fmt: skip
    with httpx.Client(base_url=api, timeout=30, trust_env=False) as client:

        def get(path: str) -> Callable[[], None]:
            def action() -> None:
                client.get(path).raise_for_status()

            return action

        figures |= _milliseconds("read.rest_progress", get(f"/v1/sweeps/{sweep_id}"), times)
        figures |= _milliseconds("read.rest_page", get(f"/v1/sweeps/{sweep_id}/jobs?limit={PAGE}"), times)
    engine.dispose()
    return figures


def _milliseconds(name: str, action: Callable[[], None], times: int) -> dict[str, float]:
    for _ in range(10):
        action()
    taken = [common.timed(action) * 1000 for _ in range(times)]
    return {f"{name}_p50_ms": common.quantile(taken, 0.5), f"{name}_p99_ms": common.quantile(taken, 0.99)}
