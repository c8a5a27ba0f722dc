"""Death travels down, the lock outlives everything but the child: with real processes and real signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from effillm_worker import supervisor
from effillm_worker.isolate import attest
from tests.support.isolation import await_true, device, is_running, opened, opening, run, started

ACTOR = """
import sys, threading
from pathlib import Path
from tests.support.isolation import opened, run
with opened(Path(sys.argv[1]), sys.argv[2]) as child:
    child.on_progress = lambda _: None
    print(child.pid, child._link.supervisor.pid, flush=True)
    child.run(run(), deadline_s=600)
"""


def actor(folder: Path, behaviour: str) -> tuple[subprocess.Popen[str], int, int]:
    """A process that runs a child, the child's id and the supervisor's."""
    process = subprocess.Popen(
        [sys.executable, "-c", ACTOR, str(folder), behaviour], stdout=subprocess.PIPE, text=True, cwd=Path.cwd()
    )
    assert process.stdout is not None
    child, watcher = process.stdout.readline().split()
    return process, int(child), int(watcher)


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


def test_the_whole_tree_is_gone_and_the_lock_free_when_the_actor_is_killed(tmp_path: Path) -> None:
    process, child, watcher = actor(tmp_path, "family")
    family = tmp_path / "work" / "family"
    await_true(family.exists, 20, "grandchildren started")
    grandchildren = [int(pid) for pid in family.read_text().split()]
    assert len(grandchildren) == 2 and all(map(is_running, grandchildren))
    end(process)
    everybody = [child, watcher, *grandchildren]
    await_true(lambda: not any(map(is_running, everybody)), 5, "the tree is gone")
    assert attest(device(), tmp_path / "locks") is None


def test_an_actor_that_is_killed_while_its_child_breeds_leaves_nothing(tmp_path: Path) -> None:
    process, child, watcher = actor(tmp_path, "rabbits")
    await_true((tmp_path / "work" / "rabbits").exists, 20, "rabbits run")
    end(process)
    await_true(lambda: not is_running(child) and not is_running(watcher), 10, "child and supervisor are gone")
    assert attest(device(), tmp_path / "locks") is None


def test_orphaned_grandchildren_are_ended_with_a_child_that_ends_by_itself(tmp_path: Path) -> None:
    with opened(tmp_path, "family") as child:
        child.on_progress = lambda _: os.kill(child.pid, signal.SIGUSR1)  # its default action ends it
        outcome = child.run(run(), deadline_s=30)
        assert outcome.kind == "fault" and outcome.exit.signal == "SIGUSR1"
    grandchildren = [int(pid) for pid in (tmp_path / "work" / "family").read_text().split()]
    assert len(grandchildren) == 2 and not any(map(is_running, grandchildren))


def test_an_orphan_keeps_its_device(tmp_path: Path) -> None:
    """A process that inherited the lock from a supervisor that is gone: nobody else gets the device until it ends."""
    locks = tmp_path / "locks"
    locks.mkdir()
    lock = supervisor.take_lock(locks / "box-cpu.lock", "device box-cpu, child started long ago")
    assert isinstance(lock, int)
    orphan = subprocess.Popen([sys.executable, "-I", "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[lock])
    os.close(lock)
    try:
        assert "long ago" in (attest(device(), locks) or "")
        with pytest.raises(Exception, match="held by another process"), started(tmp_path, "measure"):
            pass
    finally:
        orphan.communicate(b"\n")
    assert attest(device(), locks) is None


def test_killing_the_supervisor_kills_the_child(tmp_path: Path) -> None:
    process, child, watcher = actor(tmp_path, "sleep")
    try:
        os.kill(watcher, signal.SIGKILL)
        await_true(lambda: not is_running(child), 5, "the child is gone")
    finally:
        end(process)


def test_a_terminated_supervisor_ends_the_child_in_order(tmp_path: Path) -> None:
    with opened(tmp_path, "sleep") as child:
        child.on_progress = lambda _: child._link.supervisor.terminate()
        outcome = child.run(run(), deadline_s=60)
        assert outcome.kind == "fault" and outcome.exit.signal == "SIGTERM"


def test_a_stopped_actor_does_not_stop_its_childs_deadline(tmp_path: Path) -> None:
    with started(tmp_path, "hang_in_open") as child:
        child._link.order(op="watch", deadline_s=0.2, hang_s=None)  # and then nobody reads or waits
        await_true(lambda: not is_running(child.pid), 10, "the child is ended although the actor does nothing")
        assert child.open(opening(), deadline_s=5).__class__.__name__ == "Fault"


def test_supervisor_and_actor_sleep_while_the_child_works(tmp_path: Path) -> None:
    """Caught here: a parent that spins beside the measurement, whichever of the two it is."""
    with opened(tmp_path, "measure_long") as child:
        before, own_s = ticks(child._link.supervisor.pid), time.process_time()
        child.run(run(), deadline_s=30)
        own_s = time.process_time() - own_s
        # 2.5 s of measuring: at two looks a second it uses a few milliseconds.
        assert ticks(child._link.supervisor.pid) - before <= 5
        # Processor time of all threads here, not wall time: 0.1 s on a busy machine, where a spin still takes 0.4 s of 2.5.
        assert own_s < 0.25


def ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def test_it_imports_nothing_but_the_standard_library() -> None:
    code = f"import sys, runpy; sys.argv=['x']; runpy.run_path({str(supervisor.__file__)!r}); print(*sys.modules)"
    shown = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True)
    tops = {name.partition(".")[0] for name in shown.stdout.split()}
    assert tops <= set(sys.stdlib_module_names) | {"__main__", "_distutils_hack", "sitecustomize"}


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (0, {"code": 0, "signal": None}),
        (3 << 8, {"code": 3, "signal": None}),
        (9, {"code": None, "signal": "SIGKILL"}),
        (40, {"code": None, "signal": "signal 40"}),
        (None, {"code": None, "signal": None}),
    ],
)
def test_a_wait_status_is_told_in_names(status: int | None, expected: dict[str, object]) -> None:
    assert supervisor.decode(status) == expected


def test_last_lines_fit_into_a_pipe_that_nobody_reads() -> None:
    lines = supervisor.last_lines(("\x1b[31mä" * 30_000 + "\n" + "€" * 5_000 + "\n").encode() * 40)
    assert sum(len(line) * 6 for line in lines) < 65_536
    assert all(line.isprintable() for line in lines)


def test_hanging_is_judged_by_the_cells_own_pace(tmp_path: Path) -> None:
    counter = os.memfd_create("counter")
    os.ftruncate(counter, 8)
    progress = supervisor.Progress(counter)
    progress.start(hang_s=10)
    begin = progress.since
    assert not progress.hangs(begin + 1000)  # before the first token only the deadline can tell
    os.pwrite(counter, (1).to_bytes(8, "little"), 0)
    progress.look(begin + 5)
    assert progress.longest == pytest.approx(4.5)  # 5 s less the tick by which the look may be late
    assert not progress.hangs(begin + 5 + 89)
    assert progress.hangs(begin + 5 + 91)
    assert progress.continues(begin + 6) and not progress.continues(begin + 5 + 19)
    os.close(counter)
