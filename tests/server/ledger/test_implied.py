"""Out of memory answers the larger cells, and only those it implies."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import Engine, text

from effillm_server.contract.job import Cell
from effillm_server.ledger import queries, queue
from effillm_server.lifecycle import JobState
from tests.support.ledger import BOOT, GB, cell, declaration, join, leased, out_of_memory, submit

FAILED = {"hardware": "a10", "batch_size": 4, "sequence_length": 256, "generate_tokens": 8}


def _implied(engine: Engine, other: Cell, *, warm: bool = False, host: bool = False, **changes: Any) -> bool:
    """Whether `other` was answered by the failure of FAILED on a device of 24 GB."""
    with engine.begin() as c:
        join(c, "gpu", hardware_class="a10", memory_bytes=24 * GB)
        for name, (hardware_class, memory) in changes.pop("others", {}).items():
            queue.register_device(c, declaration(name, hardware_class, memory_bytes=memory), BOOT)
        first = submit(c, cell(**FAILED), other, measurement={"repeats": 2}, **changes)
        c.execute(text("UPDATE job SET not_before = clock_timestamp() + interval '1 h' WHERE ordinal = 1"))
        lease = leased(c, "gpu")
        queue.finish(c, "gpu", BOOT, lease.job_id, lease.fence, out_of_memory(warm=warm, host=host))
        job = queries.jobs(c, first, None, 2)[1]
        sweep = queries.sweep(c, first)
        assert sweep is not None
        assert sum(sweep.counts.values()) == 2
        if job.state is JobState.INFEASIBLE:
            assert (job.reason, job.implied_by) == ("implied", lease.job_id)
            assert sweep.reasons["implied"] == 1
    return job.state is JobState.INFEASIBLE


@pytest.mark.parametrize("larger", [
    {"batch_size": 8}, {"sequence_length": 512}, {"generate_tokens": 16}, {"batch_size": 8, "sequence_length": 512},
])  # fmt: skip
def test_a_cell_at_least_as_large_in_everything_is_implied(engine: Engine, larger: dict[str, Any]) -> None:
    assert _implied(engine, cell(**(FAILED | larger)))


def test_the_same_cell_repeated_in_another_process_is_implied(engine: Engine) -> None:
    with engine.begin() as c:
        join(c, "gpu", hardware_class="a10", memory_bytes=24 * GB)
        sweep_id = submit(c, *(cell(**(FAILED | {"repeat": n})) for n in (1, 2)), measurement={"repeats": 2})
        lease = leased(c, "gpu")
        queue.finish(c, "gpu", BOOT, lease.job_id, lease.fence, out_of_memory())
        sweep = queries.sweep(c, sweep_id)
    assert sweep is not None
    assert sweep.reasons["implied"] == 1


@pytest.mark.parametrize("other", [
    {"batch_size": 64, "sequence_length": 128}, {"batch_size": 8, "generate_tokens": 4},
    {"batch_size": 8, "workload": "short-qa"}, {"batch_size": 8, "workload": "short-qa", "sequence_length": None},
])  # fmt: skip
def test_a_cell_smaller_in_anything_or_of_another_workload_is_not(engine: Engine, other: dict[str, Any]) -> None:
    assert not _implied(engine, cell(**(FAILED | other)))


@pytest.mark.parametrize("other", [
    {"model": "facebook/opt-350m"}, {"quantization": "int8"}, {"dtype": "float16"}, {"weights": "pretrained"},
    {"runtime": "legacy"}, {"revision": "main"},
])  # fmt: skip
def test_another_model_precision_or_runtime_is_not_implied(engine: Engine, other: dict[str, Any]) -> None:
    larger = cell(**(FAILED | {"batch_size": 8} | other))
    with engine.begin() as c:
        join(c, "gpu", hardware_class="a10", memory_bytes=24 * GB)
        sweep_id = submit(c, cell(**FAILED), larger)
        lease = leased(c, "gpu")
        queue.finish(c, "gpu", BOOT, lease.job_id, lease.fence, out_of_memory())
        sweep = queries.sweep(c, sweep_id)
    assert sweep is not None
    assert sweep.reasons["implied"] == 0


def test_another_sweep_is_not_touched(engine: Engine) -> None:
    with engine.begin() as c:
        join(c, "gpu", hardware_class="a10", memory_bytes=24 * GB)
        submit(c, cell(**FAILED))
        lease = leased(c, "gpu")
        other = submit(c, cell(**(FAILED | {"batch_size": 8})))
        queue.finish(c, "gpu", BOOT, lease.job_id, lease.fence, out_of_memory())
        assert queries.jobs(c, other, None, 1)[0].state is JobState.PENDING


@pytest.mark.parametrize(("memory_bytes", "implied"), [(16 * GB, True), (24 * GB, True), (80 * GB, False)])
def test_classes_with_no_more_memory_are_implied_too(engine: Engine, memory_bytes: int, implied: bool) -> None:
    other = cell(**(FAILED | {"hardware": "t4"}))
    assert _implied(engine, other, others={"other": ("t4", memory_bytes)}) is implied


def test_the_own_class_is_spared_when_one_of_its_devices_has_more_memory(engine: Engine) -> None:
    assert not _implied(engine, cell(**(FAILED | {"batch_size": 8})), others={"big": ("a10", 48 * GB)})


def test_a_class_of_which_no_device_is_known_is_not_implied(engine: Engine) -> None:
    assert not _implied(engine, cell(**(FAILED | {"hardware": "t4"})))


def test_processors_are_not_implied_by_a_gpu(engine: Engine) -> None:
    assert not _implied(engine, cell(**(FAILED | {"hardware": "cpu"})), others={"box": ("cpu", 8 * GB)})


def test_host_memory_is_compared_with_host_memory(engine: Engine) -> None:
    # 80 GB on the device, but the box around it has the same 64 GB.
    other = cell(**(FAILED | {"hardware": "a100"}))
    assert _implied(engine, other, host=True, others={"big": ("a100", 80 * GB)})


def test_nothing_is_implied_before_a_fresh_child_has_confirmed_it(engine: Engine) -> None:
    assert not _implied(engine, cell(**(FAILED | {"batch_size": 8})), warm=True)


def test_a_job_being_leased_at_that_moment_is_left_alone(engine: Engine) -> None:
    with engine.begin() as c:
        for name in ("one", "two"):
            join(c, name, hardware_class="a10", memory_bytes=24 * GB)
        submit(c, cell(**FAILED), cell(**(FAILED | {"batch_size": 8})))
        lease = leased(c, "one")
    with engine.connect() as claiming:
        other = leased(claiming, "two")
        with engine.begin() as c:
            queue.finish(c, "one", BOOT, lease.job_id, lease.fence, out_of_memory())
        claiming.commit()
    with engine.connect() as c:
        job = queries.job(c, other.job_id)
    assert job is not None
    assert job.state is JobState.LEASED
