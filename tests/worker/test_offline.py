"""Leaving the network, as root and as somebody else; what the kernel refuses is said and stops nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from effillm_worker import offline

# Not 65534: that is what an unmapped user looks like in a namespace.
SOMEBODY = 12_345
# A parent that stays and a child that leaves, both the same ordinary user; everything is imported before they become it, as this
# user need not be able to read the interpreter's files. Who changes users is not dumpable, until it says so itself.
PAIR = """
import contextlib, ctypes, fcntl, json, os, pathlib, socket, struct, sys

source, user = sys.stdin.read(), int(sys.argv[1])
os.setgroups([])
os.setgid(user)
os.setuid(user)
ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)
listening = socket.create_server(("127.0.0.1", 0))
told, tell = os.pipe()
hold, release = os.pipe()
child = os.fork()
if child == 0:
    os.close(release)
    found = {"__name__": "__main__"}
    exec(compile(source, "offline.py", "exec"), found)
    try:
        socket.socket().connect(listening.getsockname())
        said = "connected"
    except OSError as error:
        said = str(error.errno)
    os.write(tell, json.dumps({"network": found["network"], "said": said, "ids": [os.getuid(), os.getgid()]}).encode())
    os.close(tell)
    os.read(hold, 1)
    os._exit(0)
os.close(tell)
report = json.loads(open(told, "rb").read())
report["pss"] = any(line.startswith("Pss:") for line in open(f"/proc/{child}/smaps_rollup"))
with open(f"/proc/{child}/clear_refs", "w") as file:
    file.write("5")
report["owner"] = os.stat(f"/proc/{child}").st_uid
os.kill(child, 9)
report["signal"] = os.WTERMSIG(os.waitpid(child, 0)[1])
print(json.dumps(report))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_an_ordinary_user_leaves_by_a_user_namespace_and_its_parent_reads_and_ends_it_as_before() -> None:
    done = subprocess.run(
        [sys.executable, "-I", "-c", PAIR, str(SOMEBODY)], input=Path(offline.__file__).read_text(), text=True,
        capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    if report["network"] != "none":
        pytest.skip(f"this kernel gives an ordinary user no namespace: {report['network']}")
    assert report == {
        "network": "none", "said": "111", "ids": [SOMEBODY, SOMEBODY], "pss": True, "owner": SOMEBODY, "signal": 9,
    }  # fmt: skip


def test_a_kernel_that_refuses_everything_is_told_and_the_process_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []

    def refuse(flags: int) -> None:
        tried.append(flags)
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(offline, "unshare", refuse)
    assert offline.leave() == "host: no network namespace to be had (Operation not permitted)"
    assert tried == [offline.CLONE_NEWNET]  # a user namespace was tried by a process of its own only


def test_a_kernel_without_namespaces_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def lack(flags: int) -> None:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(offline, "unshare", lack)
    assert offline.leave() == "host: no network namespace to be had (Invalid argument)"


def test_a_user_namespace_whose_rights_are_taken_away_is_not_entered(monkeypatch: pytest.MonkeyPatch) -> None:
    """As AppArmor does it on some systems: in, and then no right to map users."""
    entered: list[int] = []

    def enter() -> None:
        entered.append(os.getpid())
        raise PermissionError(1, "Operation not permitted")

    def refuse(flags: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(offline, "unshare", refuse)
    monkeypatch.setattr(offline, "enter_user_namespace", enter)
    assert offline.leave().startswith("host: ")
    assert entered == []
