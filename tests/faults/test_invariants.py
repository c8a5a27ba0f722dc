"""The checker itself: it says nothing of a sound ledger and names every violation planted into one."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from effillm_server.ledger import queue
from tests.support import ledger
from tests.support.faults import invariants
from tests.support.faults.workload import Accepted


@pytest.fixture
def sound(database_url: str) -> tuple[Engine, Accepted]:  # type: ignore[misc]
    """A sweep of two measured jobs."""
    with ledger.ledger(database_url) as engine:
        with engine.begin() as c:
            device = ledger.join(c)
            cells = [ledger.cell(batch_size=size) for size in (1, 2)]
            sweep_id = ledger.submit(c, *cells, key="k")
            for _ in cells:
                lease = ledger.leased(c, device)
                assert queue.finish(c, device, ledger.BOOT, lease.job_id, lease.fence, ledger.measured()).accepted
        yield engine, Accepted(sweep_id, 2)


def findings(engine: Engine, accepted: Accepted, folder: Path) -> dict[str, int]:
    with engine.connect() as c:
        found = invariants.check(c, {"k": accepted}, folder / "witness", folder / "locks", [folder / "spool"])
    return {name: n for name, n in found.counts.items() if n}


def test_a_sound_ledger_has_no_findings(sound: tuple[Engine, Accepted], tmp_path: Path) -> None:
    assert findings(*sound, tmp_path) == {}


@pytest.mark.parametrize(
    ("damage", "kind"),
    [
        ("DELETE FROM job WHERE ordinal = 1", "lost"),
        ("UPDATE sweep SET idempotency_key = 'other'", "duplicated"),
        ("UPDATE attempt SET followed_by = 'pending' WHERE job_id = (SELECT min(id) FROM job)", "duplicated"),
        ("INSERT INTO event (sweep_id, job_id, kind) SELECT sweep_id, id, 'job_measured' FROM job", "duplicated"),
        ("UPDATE attempt SET reported = false WHERE job_id = (SELECT min(id) FROM job)", "stale accepted"),
        ("UPDATE device SET state = 'releasing'", "stuck"),
        ("UPDATE sweep SET finished_at = NULL", "stuck"),
        ("UPDATE sweep_counter SET measured = measured + 1", "stuck"),
        (
            "UPDATE attempt SET ended_at = (SELECT max(ended_at) FROM attempt) WHERE job_id = (SELECT min(id) FROM job)",
            "overlapping",
        ),
    ],
)
def test_damage_to_the_ledger_is_named(sound: tuple[Engine, Accepted], tmp_path: Path, damage: str, kind: str) -> None:
    engine, accepted = sound
    with engine.begin() as c:
        c.execute(text(damage))
    assert kind in findings(engine, accepted, tmp_path)


def test_an_outcome_left_in_a_spool_is_lost(sound: tuple[Engine, Accepted], tmp_path: Path) -> None:
    spool = tmp_path / "spool" / "device"
    spool.mkdir(parents=True)
    (spool / "1-1.outcome.json").write_text("{}")
    assert findings(*sound, tmp_path) == {"lost": 1}


def test_cells_at_one_time_and_children_beside_each_other_overlap(tmp_path: Path) -> None:
    def line(child: str, kind: str, ns: int, **more: object) -> str:
        return json.dumps({"kind": kind, "child": child, "device": "d", "ns": ns} | more) + "\n"

    (tmp_path / "d.jsonl").write_text(
        line("a", "begin", 0, pid=1, started=1, beside=[])
        + line("a", "cell_begin", 10, digest="x")
        + line("b", "begin", 12, pid=2, started=2, beside=["a"])
        + line("b", "cell_begin", 15, digest="y")
        + line("a", "cell_end", 20, digest="x")
        + line("b", "cell_end", 25, digest="y")
    )
    found = invariants.side_by_side(invariants.witnessed(tmp_path))
    assert found == ["device d: child b began beside a", "device d: children a and b measured at one time"]


def test_a_process_that_outlives_its_child_and_a_held_lock_are_found(tmp_path: Path) -> None:
    (tmp_path / "d.lock").write_text("somebody")
    descriptor = os.open(tmp_path / "d.lock", os.O_RDWR)
    seen = {"d": [{"kind": "begin", "child": "c0ffee"}]}
    orphan = subprocess.Popen(
        [sys.executable, "-c", "print(flush=True); import signal; signal.pause()"],
        env=os.environ | {"EFFILLM_CHILD": "c0ffee"}, stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert orphan.stdout is not None
        orphan.stdout.readline()
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        assert invariants.orphans(seen) == [f"process {orphan.pid} of child c0ffee still runs"]
        assert invariants.held_locks(tmp_path) == ["d.lock is held: somebody"]
    finally:
        orphan.kill()
        orphan.communicate()
        os.close(descriptor)
    assert (invariants.orphans(seen), invariants.held_locks(tmp_path)) == ([], [])
