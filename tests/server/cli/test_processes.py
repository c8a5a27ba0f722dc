"""Children of `up`: restarted when they die, given up when that is hopeless, all gone at the end.

Each test drives `Services` in a process of its own, since it adopts and ends every descendant of the process it is in.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from effillm_server.cli.processes import ending, in_words, last_line, rotate

PREAMBLE = """
import os, sys, time
from pathlib import Path
from effillm_server.cli import processes
from effillm_server.cli.processes import Service, Services
from effillm_server.errors import Unavailable

folder = Path(sys.argv[1])
services = Services(lambda line: print(line, flush=True))

def start(name, script, **options):
    services.start(Service(name, ("sh", "-c", script), dict(os.environ), folder / f"{name}.log", **options))

def until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "nothing happened"
        services.check()
        time.sleep(0.01)

def written(name):
    path = folder / name
    return path.read_text() if path.exists() else ""
"""


def drive(folder: Path, script: str) -> str:
    """What the script says on stdout; it must end well."""
    done = subprocess.run(
        [sys.executable, "-c", PREAMBLE + script, str(folder)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_child_that_dies_is_started_again(tmp_path: Path) -> None:
    said = drive(
        tmp_path,
        """
start("api", f"echo started >> {folder}/starts; echo out of luck; [ $(wc -l < {folder}/starts) -ge 2 ] && sleep 600; exit 1")
until(lambda: written("starts").count("started") == 2)
services.stop()
""",
    )
    assert "api stopped with exit code 1: out of luck" in said
    assert "restarting in 0.5 s" in said
    assert "api restarted" in said


def test_a_child_that_says_it_never_can_run_is_not_restarted(tmp_path: Path) -> None:
    said = drive(
        tmp_path,
        """
start("node", "echo 'error: port 1 is taken' >&2; exit 2")
try:
    until(lambda: False)
except Unavailable as error:
    print(error)
services.stop()
""",
    )
    assert said == f"gave up: node stopped with exit code 2: port 1 is taken (log: {tmp_path}/node.log)\n"


def test_a_child_that_dies_again_and_again_is_given_up(tmp_path: Path) -> None:
    said = drive(
        tmp_path,
        """
processes.FIRST_RESTART_DELAY_S = 0.01
start("fleet", "kill -9 $$")
try:
    until(lambda: False)
except Unavailable as error:
    print(error)
services.stop()
""",
    )
    last = said.splitlines()[-1]
    assert last == f"gave up 5 times: fleet was ended by SIGKILL: it wrote nothing (log: {tmp_path}/fleet.log)"


def test_children_stop_in_reverse_order_of_their_start(tmp_path: Path) -> None:
    drive(
        tmp_path,
        """
for name in ("first", "second", "third"):
    start(name, f"trap 'echo {name} >> {folder}/order; exit 0' TERM; echo up >> {folder}/up; while :; do sleep 0.05; done")
until(lambda: written("up").count("up") == 3)
services.stop()
""",
    )
    assert (tmp_path / "order").read_text().split() == ["third", "second", "first"]


def test_a_child_that_does_not_stop_is_killed(tmp_path: Path) -> None:
    said = drive(
        tmp_path,
        """
start("deaf", f"trap '' TERM; echo up > {folder}/up; while :; do sleep 0.05; done", stop_within_s=0.3)
until(lambda: written("up"))
services.stop()
""",
    )
    assert said == "deaf did not stop within 0.3 s and was killed\n"


def test_stopping_ends_grandchildren_that_left_their_session(tmp_path: Path) -> None:
    said = drive(
        tmp_path,
        """
start("parent", f"setsid sh -c 'echo $$ > {folder}/pid; trap : TERM; while :; do sleep 0.05; done' & wait")
until(lambda: written("pid"))
services.stop()
print(written("pid"))
""",
    )
    assert not psutil.pid_exists(int(said))


def test_an_adopted_process_that_ends_does_not_stay_a_zombie(tmp_path: Path) -> None:
    said = drive(
        tmp_path,
        """
start("parent", f"sh -c 'sleep 0.2 & echo $! > {folder}/pid; exit 0'; while :; do sleep 0.05; done")
until(lambda: written("pid").endswith("\\n"))
until(lambda: not Path(f"/proc/{written('pid').strip()}").exists())
services.stop()
print("reaped")
""",
    )
    assert said == "reaped\n"


def test_a_log_that_has_grown_large_is_moved_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("effillm_server.cli.processes.LARGEST_LOG_BYTES", 10)
    log = tmp_path / "api.log"
    log.write_text("more than ten bytes")
    rotate(log)
    assert not log.exists()
    assert (tmp_path / "api.log.1").read_text() == "more than ten bytes"


def test_the_last_line_of_a_log_is_the_last_that_says_anything(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    assert last_line(log) == "it wrote nothing"
    log.write_text("first\n  last  \n\n")
    assert last_line(log) == "last"


def test_a_structured_log_line_is_put_in_words() -> None:
    assert in_words('{"event": "fleet.ended", "error": "no head"}') == "no head"
    assert in_words('{"event": "fleet.ended"}') == "fleet.ended"
    assert in_words("[1, 2]") == "[1, 2]"
    assert in_words("plain text") == "plain text"


def test_an_ending_is_told_by_signal_or_by_exit_code() -> None:
    assert ending(-9) == "was ended by SIGKILL"
    assert ending(3) == "stopped with exit code 3"
