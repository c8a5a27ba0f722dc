"""Work in a process of its own: real processes, looked at far more often than outside of tests."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from effillm_worker import aside
from tests.support.isolation import await_true, is_running

PYTHON = (sys.executable, "-I", "-c")


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aside, "LOOK_S", 0.05)


def test_a_process_is_given_all_of_its_input_and_what_it_wrote_comes_back() -> None:
    said = "x" * 1_000_000  # more than a pipe holds, taken only after some looks
    code = "import sys, time; time.sleep(0.3); print(len(sys.stdin.read())); print('why', file=sys.stderr); sys.exit(3)"
    done = aside.run([*PYTHON, code], said)
    assert (done.returncode, done.stdout, done.stderr) == (3, "1000000\n", "why\n")


def test_its_environment_is_the_one_that_is_given() -> None:
    code = "import os; print(sorted(set(os.environ) - {'LC_CTYPE'}))"
    assert aside.run([*PYTHON, code], "", environment={"ONE": "1"}).stdout == "['ONE']\n"


def test_work_is_told_and_waiting_is_not() -> None:
    working: list[tuple[int, int]] = []
    waiting: list[tuple[int, int]] = []
    aside.run([*PYTHON, "import time\nwhile time.process_time() < 1: pass"], "", lambda *told: working.append(told))
    aside.run(["sleep", "1"], "", lambda *told: waiting.append(told))
    assert len(working) >= 3
    assert all(at_most == 0 for _, at_most in working)
    assert [seconds for seconds, _ in working] == sorted(seconds for seconds, _ in working)
    assert len(waiting) <= 1  # what it took to start


def test_a_process_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    code = f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    with pytest.raises(subprocess.TimeoutExpired):
        aside.run([*PYTHON, code], "", limit_s=3)
    pid = int((tmp_path / "pid").read_text())
    await_true(lambda: not is_running(pid), 5, "the process has ended")


def test_whatever_telling_raises_ends_the_process(tmp_path: Path) -> None:
    code = f"import os; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\nwhile True: pass"

    class Gone(Exception):
        pass

    def tick(*_: int) -> None:
        if (tmp_path / "pid").exists() and (tmp_path / "pid").read_text():
            raise Gone

    with pytest.raises(Gone):
        aside.run([*PYTHON, code], "", tick)
    pid = int((tmp_path / "pid").read_text())
    await_true(lambda: not is_running(pid), 5, "the process has ended")
