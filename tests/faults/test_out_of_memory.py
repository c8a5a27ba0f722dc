"""A hundred children that run out of memory, half of them of the host's: every one is told rightly, and nobody else dies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine

from effillm_server.ledger import queries
from effillm_server.ledger.engine import connect
from effillm_server.lifecycle import DeviceState, JobState
from effillm_worker import bench, fingerprint, limits
from effillm_worker.isolate import Child, ChildSpec
from tests.support.actors import (
    cell,
    device,
    grant,
    of_device,
    of_job,
    running,
    settings,
    submit,
    wait_free,
    wait_state,
)
from tests.support.children import eater

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]

LIMIT_BYTES = 300 * 2**20
TOKENS = 128 + 4
EACH = 50


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    made = connect(database_url, "api")
    yield made
    made.dispose()


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> list[Child]:
    """Every child that is started from now on; none may take more than LIMIT_BYTES."""
    monkeypatch.setattr(bench, "MEMORY_SHARE", (LIMIT_BYTES + 0.5) / fingerprint.memory_bytes())
    kept: list[Child] = []
    usual = Child.start

    def start(spec: ChildSpec) -> Child:
        assert spec.memory_limit_bytes == LIMIT_BYTES
        kept.append(usual(spec))
        return kept[-1]

    monkeypatch.setattr(Child, "start", start)
    return kept


def ways_to_eat() -> tuple[str, ...]:
    """How this machine can be made to refuse memory: by the allocator, and where control groups are, by the kernel."""
    groups = limits.prepare("probe", LIMIT_BYTES)
    groups.remove()
    return ("asked",) if groups.memory is None else ("asked", "shared")


def test_100_of_100_are_told_rightly_and_actors_and_supervisors_live(
    database_url: str, tmp_path: Path, engine: Engine, children: list[Child]
) -> None:
    own = settings(database_url, tmp_path, runtimes={"eater": str(eater.interpreter(tmp_path / "eater"))})
    ways = ways_to_eat()
    with running(own, device("t4-test-0", "t4")) as first, running(own, device("a100-test-0", "a100")) as second:
        for name in ("t4-test-0", "a100-test-0"):
            wait_free(engine, name)
        # Beyond the declared size by one token and more, and, last, at it and below.
        sizes = [*range(TOKENS - EACH, TOKENS), TOKENS, TOKENS + 1]
        of_the_device = submit(engine, *(cell(model=f"simulated/oom-above-{size}") for size in sizes))
        of_the_host = submit(engine, *(
            cell(hardware="a100", model=f"simulated/eats-{ways[number % len(ways)]}-{number}", runtime="eater")
            for number in range(EACH)
        ))  # fmt: skip
        boots = [actor.status()["boot_id"] for actor in (first, second)]
        for actor in (first, second):
            grant(engine, actor)
        ended = (JobState.INFEASIBLE, JobState.MEASURED, JobState.FAILED)
        jobs = [wait_state(engine, job_id, *ended, within_s=400) for job_id in (*of_the_device, *of_the_host)]
        for name in ("t4-test-0", "a100-test-0"):
            wait_free(engine, name)
            assert of_device(engine, name).state is DeviceState.FREE
        assert [actor.status()["boot_id"] for actor in (first, second)] == boots
        assert all(actor._lane.is_alive() for actor in (first, second))
    told = Counter((job.cell.hardware, str(job.state), job.reason) for job in jobs)
    assert told == {
        ("t4", "infeasible", "out_of_device_memory"): EACH, ("a100", "infeasible", "out_of_host_memory"): EACH,
        ("t4", "measured", None): 2,
    }, [job.message for job in jobs if job.state is not JobState.INFEASIBLE]  # fmt: skip
    with engine.begin() as c:
        assert [len(queries.attempts(c, job.id)) for job in jobs] == [1] * len(jobs)
    # One child each, and each ended as its own supervisor says: none of those was ended for memory's sake.
    assert len(children) == len(jobs)
    endings = [child._link.ending for child in children]
    assert all(ending is not None and ending.why != "supervisor_lost" for ending in endings)
    kernel = [job for job in (of_job(engine, id_) for id_ in of_the_host) if "memory limit" in str(job.message)]
    print(f"{2 * EACH} of {2 * EACH}: {len(kernel)} ended by the kernel, {EACH - len(kernel)} refused by the allocator")
    if "shared" in ways:
        assert len(kernel) >= EACH // 2
