"""A tethered command cannot outlive whoever asked for it."""

from __future__ import annotations

import os
import subprocess
import sys

import psutil

from effillm_server.cli.processes import TETHER

PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-I", "-S", sys.argv[1], str(__import__("os").getpid()), "15", "-", "sleep", "600"])
print(child.pid, flush=True)
child.wait()
"""


def test_the_command_ends_when_its_parent_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT, str(TETHER)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
        psutil.wait_procs([child], timeout=10)
        assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_nothing_starts_when_the_parent_is_gone_already() -> None:
    done = tethered("1", "echo", "started")
    assert done.returncode != 0
    assert done.stdout == ""
    assert "has ended" in done.stderr


def test_the_command_keeps_its_arguments_and_its_exit_code() -> None:
    done = tethered(str(os.getpid()), "sh", "-c", 'printf "%s" "$1"; exit 7', "sh", "a b")
    assert (done.returncode, done.stdout) == (7, "a b")


def tethered(parent: str, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-I", "-S", str(TETHER), parent, "15", "-", *command],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
