"""Two Ray clusters that both offer one device of a box: the second finds its lock held and measures nothing there meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import Engine

from effillm_server.ledger import queries, queue
from effillm_server.ledger.engine import connect
from effillm_server.lifecycle import DeviceState, JobState
from tests.support.actors import cell, of_device, of_job, submit, wait_state
from tests.support.postgres import cloned
from tests.support.ray_cluster import ray_cluster
from tests.support.waiting import until

DEVICE = "t4-box-0"
PATIENCE_S = 180.0
# Four minutes with this plan: longer than a second cluster takes to come up.
VERY_SLOW = "simulated/slow-5"
PLAN = {"warmup": 3, "iterations": 5, "time_limit_s": 1800}


@contextmanager
def cluster(url: str, locks: Path) -> Iterator[Engine]:
    """A cluster, ledger and fleet of its own for the box's one device, whose lock file it shares with whoever else is there."""
    engine = connect(url, "api")
    try:
        with ray_cluster({"box": ["t4"]}, url, {"EFFILLM_LOCK_DIR": str(locks)}) as made:
            made.start_fleet().wait_for("fleet.active")
            yield engine
    finally:
        engine.dispose()


@pytest.mark.timeout(600)
def test_a_second_clusters_worker_measures_nothing_while_the_first_has_the_device(
    postgres_url: str, template_database: str, tmp_path: Path
) -> None:
    locks = tmp_path / "locks"
    with (
        cloned(postgres_url, template_database) as url,
        cloned(postgres_url, template_database) as other_url,
        cluster(url, locks) as first,
    ):
        until(
            "the first cluster's device is free", lambda: of_device(first, DEVICE).state is DeviceState.FREE, PATIENCE_S
        )
        (held,) = submit(first, cell(model=VERY_SLOW), measurement=PLAN)
        wait_state(first, held, JobState.LEASED, within_s=PATIENCE_S)
        until("its child has the lock", lambda: "child started" in (locks / f"{DEVICE}.lock").read_text(), PATIENCE_S)
        with cluster(other_url, locks) as second:
            (waiting,) = submit(second, cell())
            until(
                "the second says why",
                lambda: "still holds the device" in str(of_device(second, DEVICE).reason),
                PATIENCE_S,
            )
            assert of_device(second, DEVICE).state is DeviceState.QUARANTINED
            with second.begin() as c:
                assert queries.attempts(c, waiting) == []
            assert of_job(second, waiting).state is JobState.PENDING
            assert of_job(first, held).state is JobState.LEASED
            with first.begin() as c:
                queue.cancel_job(c, held)
            wait_state(second, waiting, JobState.MEASURED, within_s=PATIENCE_S)
