"""The judge of declared ends: by the cell's size, by reason, and attempt by attempt."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import Engine

from effillm_server.contract.outcome import FaultKind, Outcome
from effillm_server.ledger import queue
from tests.support import ledger
from tests.support.faults import ends
from tests.support.faults.ends import Infliction

CRASHED = ledger.crashed(message="batch 1 of simulated/crash: the child was ended by SIGABRT")
LOST = ledger.crashed(fault=FaultKind.LOST, message="device box-cpu0: the lease expired without renewal")
HUNG = ledger.crashed(fault=FaultKind.HUNG, message="batch 1 made no progress and was ended (deadline)")
KILLED = ledger.crashed(message="the child was ended by SIGKILL")


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    with ledger.ledger(database_url) as made:
        yield made


def judged(engine: Engine, model: str, *outcomes: Outcome, batch_size: int = 1, reach: str | None = None) -> list[str]:
    """What is said of a job of this model, 20 tokens a row, whose attempts ended so; `reach`: a fault touched this."""
    with engine.begin() as c:
        device = ledger.join(c)
        one = ledger.cell(model=model, batch_size=batch_size, sequence_length=16)
        sweep_id = ledger.submit(c, one)
        for outcome in outcomes:
            lease = ledger.leased(c, device)
            assert queue.finish(c, device, ledger.BOOT, lease.job_id, lease.fence, outcome).accepted
            ledger.skip_backoff(c)
    now = datetime.now(UTC)
    inflicted = [] if reach is None else [Infliction(frozenset({reach}), reach == "everywhere", now, now)]
    with engine.connect() as c:
        return ends.misjudged(c, [sweep_id], inflicted)


@pytest.mark.parametrize(
    ("model", "batch_size", "outcome"),
    [
        ("simulated/oom-above-300", 32, ledger.out_of_memory()),
        ("simulated/oom-above-300", 8, ledger.measured()),
        ("simulated/host-oom-above-300", 32, ledger.out_of_memory(host=True)),
        ("simulated/host-oom-above-300", 15, ledger.measured()),
        ("simulated/flood", 1, ledger.measured()),
        ("simulated/100", 1, ledger.out_of_memory()),
    ],
)
def test_an_end_that_was_declared_and_a_model_that_declares_none_are_fine(
    engine: Engine, model: str, batch_size: int, outcome: Outcome
) -> None:
    assert judged(engine, model, outcome, batch_size=batch_size) == []


@pytest.mark.parametrize(
    ("model", "batch_size", "outcome", "said"),
    [
        ("simulated/oom-above-300", 32, ledger.measured(), "640 tokens ended measured (None), not infeasible"),
        ("simulated/oom-above-300", 8, ledger.out_of_memory(), "160 tokens ended infeasible (out_of_device_memory)"),
        ("simulated/oom-above-300", 32, ledger.out_of_memory(host=True), "by out_of_host_memory, not out_of_device_memory"),
        ("simulated/host-oom-above-300", 32, ledger.out_of_memory(), "by out_of_device_memory, not out_of_host_memory"),
        ("simulated/flood", 1, ledger.out_of_memory(), "ended infeasible (out_of_device_memory), not measured"),
    ],
)  # fmt: skip
def test_memory_is_judged_by_size_and_by_reason(
    engine: Engine, model: str, batch_size: int, outcome: Outcome, said: str
) -> None:
    assert said in judged(engine, model, outcome, batch_size=batch_size)[0]


def test_a_crash_that_is_found_each_time_or_once_beside_faults_is_fine(engine: Engine) -> None:
    assert judged(engine, "simulated/crash", CRASHED, CRASHED, CRASHED) == []


def test_a_crash_among_two_disturbed_attempts_is_fine_where_faults_were_near(engine: Engine) -> None:
    assert judged(engine, "simulated/crash", LOST, CRASHED, KILLED, reach="box-cpu0") == []


@pytest.mark.parametrize("model", ["simulated/crash", "simulated/exit", "simulated/fail"])
def test_three_losses_are_no_crash_whatever_was_near(engine: Engine, model: str) -> None:
    (said,) = judged(engine, model, LOST, LOST, LOST, reach="everywhere")
    assert f"of {model} never ended as it declares: ['lost', 'lost', 'lost']" in said


def test_three_losses_are_no_hang_without_a_fault_at_its_device(engine: Engine) -> None:
    assert len(judged(engine, "simulated/stall", LOST, LOST, LOST, reach="another-device")) == 3


def test_a_hang_may_be_disturbed_each_time_by_a_fault_at_its_device(engine: Engine) -> None:
    assert judged(engine, "simulated/orphan", LOST, KILLED, HUNG, reach="box-cpu0") == []


def test_a_crash_called_a_hang_is_misjudged_even_beside_a_fault(engine: Engine) -> None:
    found = judged(engine, "simulated/crash", HUNG, CRASHED, CRASHED, reach="everywhere")
    assert len(found) == 1 and "fault (hung)" in found[0]


def test_a_fault_explains_what_it_overlaps_and_nothing_earlier() -> None:
    began = datetime(2026, 1, 1, tzinfo=UTC)
    fault = Infliction(frozenset({"d"}), everywhere=False, began=began, ended=began + timedelta(seconds=10))
    minute = timedelta(minutes=1)
    assert fault.explains("d", began - minute, began)
    assert fault.explains("d", began + timedelta(seconds=5), began + minute)
    assert not fault.explains("e", began, began + minute)
    assert not fault.explains("d", began - 2 * minute, began - minute)
    assert not fault.explains("d", began + minute, began + 2 * minute)
