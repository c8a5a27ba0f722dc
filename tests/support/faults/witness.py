"""The interpreter of the runtime `witnessed`: an ordinary measuring child that also keeps a log of its own.

The log tells what no database row can: which processes really were on a device at one time. Each device has one
append-only file; a child writes when it begins and around every cell, by the machine's monotonic clock, and when it
begins it looks whether any earlier child of its device still lives. Two children that overlap are therefore found by the
later one, however the earlier one ends.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import sys
import time
from pathlib import Path
from typing import Any

MODULE = "effillm_worker"
# A model that measures like any other, but for this: its cell takes the whole node with it. The product knows nothing of it.
NODE_KILLER = "simulated/kills-its-node"


def main(folder: str) -> None:
    """Run the measuring child as an interpreter would, and keep the log."""
    clock = Path(folder) / "clock"
    if clock.exists() and "LD_PRELOAD" not in os.environ:
        library, seconds = clock.read_text().split()
        shifted = dict(os.environ) | {"LD_PRELOAD": library, "CLOCK_OFF_S": seconds}
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], shifted)
    device = Path.cwd().name  # the actor gives every device a working directory of its own name
    log = Log(Path(folder) / f"{device}.jsonl", os.environ.get("EFFILLM_CHILD", ""))
    log.write("begin", pid=os.getpid(), started=started(os.getpid()), beside=log.living())
    _witness_cells(log)
    sys.argv = [MODULE]
    try:
        runpy.run_module(MODULE, run_name="__main__", alter_sys=True)
    finally:
        log.write("end")


def _witness_cells(log: Log) -> None:
    from effillm_worker.measure import session

    measure = session.measure

    def witnessed(engine: Any, channel: Any, run: Any, **options: Any) -> Any:
        digest = run.cell.digest(run.plan)
        log.write("cell_begin", digest=digest)
        if run.cell.model == NODE_KILLER:
            kill_node()
        try:
            return measure(engine, channel, run, **options)
        finally:
            log.write("cell_end", digest=digest)

    session.measure = witnessed


def kill_node() -> None:
    """Everything of this node dies at once, this process included, as when a job makes its machine crash."""
    from tests.support.faults import tree

    processes = tree.table()
    pid, node = os.getpid(), None
    while pid in processes and pid > 1:
        node = pid if any("effillm_worker.node" in part for part in processes[pid][1]) else node
        pid = processes[pid][0]
    if node is None:
        raise SystemExit("no node above this process")
    # By somebody who does not die with the first of them: the kernel ends a child with its supervisor.
    if os.fork() == 0:
        if os.fork() == 0:
            tree.kill_at_once(one for one in tree.below(node) if one.pid != os.getpid())
        os._exit(0)
    signal.pause()


class Log:
    """One device's append-only file; a line is written whole or not at all."""

    def __init__(self, path: Path, child: str) -> None:
        self._path = path
        self._child = child
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def write(self, kind: str, **fields: Any) -> None:
        line = {"kind": kind, "device": self._path.stem, "child": self._child, "ns": time.monotonic_ns()} | fields
        os.write(self._file, (json.dumps(line) + "\n").encode())

    def living(self) -> list[str]:
        """Earlier children of this device that still run."""
        found = []
        for text in self._path.read_text().splitlines():
            line = json.loads(text)
            if line["kind"] == "begin" and line["child"] != self._child and is_living(line["pid"], line["started"]):
                found.append(line["child"])
        return found


def started(pid: int) -> int | None:
    """When the process began, in ticks since the machine's start: with it a process id names one process for ever."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, IndexError):
        return None


def is_living(pid: int, since: int) -> bool:
    """Whether this very process still has memory of its own; one on its way out gives that up before its descriptors."""
    try:
        return started(pid) == since and bool(Path(f"/proc/{pid}/cmdline").read_bytes())
    except OSError:
        return False


def interpreter(path: Path, folder: Path) -> Path:
    """An executable at `path` that stands for an interpreter and logs into `folder`.

    Asked for anything but a child, as what its environment has, it is the plain interpreter.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f"#!{sys.executable}\n"
        "import os, sys\n"
        f"if sys.argv[1:3] != ['-m', {MODULE!r}]:\n"
        "    os.execv(sys.executable, [sys.executable, *sys.argv[1:]])\n"
        f"from tests.support.faults.witness import main\nmain({str(folder)!r})\n"
    )
    path.chmod(0o755)
    return path
