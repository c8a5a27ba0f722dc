"""Every way in which a model of the engine `simulated` declares to end, undisturbed: what the ledger says of its first attempt."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from effillm_server.ledger import queries
from effillm_server.ledger.engine import connect
from effillm_server.lifecycle import DeviceState
from effillm_worker import bench
from effillm_worker.link import marked
from tests.support.actors import cell, grant, of_device, running, settings, submit, wait_free
from tests.support.faults.ends import declared
from tests.support.faults.workload import HANGING
from tests.support.waiting import until

PLAN = {"warmup": 3, "iterations": 5, "time_limit_s": 7}
# Those that hang are ended after 2.7 s instead of two minutes behind their time limit.
MARGIN_S = -5.0
TOKENS = 128 + 4
MODELS = (
    "crash", "exit", "fail", "stall", "hang", "ignore-term", "orphan", "unsupported", "flood", f"oom-above-{TOKENS - 1}",
    f"oom-above-{TOKENS}", f"host-oom-above-{TOKENS - 1}", f"host-oom-above-{TOKENS}",
)  # fmt: skip


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    made = connect(database_url, "api")
    yield made
    made.dispose()


@pytest.mark.parametrize("name", MODELS)
def test_an_attempt_ends_as_its_model_declares_and_its_device_is_free_with_nothing_left(
    database_url: str, tmp_path: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    model = f"simulated/{name}"
    if model in HANGING:
        monkeypatch.setattr(bench, "CELL_MARGIN_S", MARGIN_S)
    end = declared(model, TOKENS)
    assert end is not None
    with running(settings(database_url, tmp_path)) as actor:
        wait_free(engine)
        (job_id,) = submit(engine, cell(model=model), measurement=PLAN)
        grant(engine, actor)

        def ended() -> bool:
            with engine.begin() as c:
                return queries.attempts(c, job_id)[0].ended_at is not None

        until("the attempt has ended", ended, 60)
        with engine.begin() as c:
            (attempt,) = queries.attempts(c, job_id)
            child = c.execute(text("SELECT child_id FROM attempt")).scalar_one()
        assert end.is_said_by(attempt), (attempt.outcome, attempt.reason, attempt.message)  # type: ignore[arg-type]
        wait_free(engine)
        assert of_device(engine).state is DeviceState.FREE
        until("the child is gone", lambda: actor.status()["group"] is None and not marked(child))
