"""Which processes of a lab run now and which device they serve, read from /proc."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tests.support.faults.witness import is_living, started


@dataclass(frozen=True)
class Process:
    """One process for ever: a process id is used again, not together with its time of start."""

    pid: int
    started: int

    @classmethod
    def of(cls, pid: int) -> Process | None:
        since = started(pid)
        return None if since is None else cls(pid, since)

    @property
    def is_living(self) -> bool:
        return is_living(self.pid, self.started)

    def send(self, number: int) -> None:
        """Signal it; harmless when it is gone."""
        if self.is_living:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)


@dataclass(frozen=True)
class Worker:
    """The processes of one device that is measuring."""

    device: str
    actor: Process
    supervisor: Process
    child: Process


def table() -> dict[int, tuple[int, list[str]]]:
    """Parent and arguments of every living process."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, IndexError, ValueError):
                state, parent = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()[:2]
                arguments = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
                if state not in "ZX":
                    found[int(entry.name)] = (int(parent), arguments)
    return found


def workers(lock_dir: Path) -> dict[str, Worker]:
    """The measuring devices whose locks lie in `lock_dir`."""
    processes = table()
    found = {}
    for pid, (parent, arguments) in processes.items():
        if len(arguments) > 3 and arguments[2].endswith("/supervisor.py"):
            lock = Path(json.loads(arguments[3])["lock"])
            child = next((other for other, (above, _) in processes.items() if above == pid), None)
            # A supervisor whose actor has just died belongs to init for a moment: nobody to aim at.
            if lock.parent != lock_dir or child is None or parent == 1:
                continue
            chain = [Process.of(parent), Process.of(pid), Process.of(child)]
            if None not in chain:
                found[lock.stem] = Worker(lock.stem, *chain)  # type: ignore[arg-type]
    return found


def below(root: int) -> list[Process]:
    """The process and everything under it."""
    processes = table()
    children: dict[int, list[int]] = {}
    for pid, (parent, _) in processes.items():
        children.setdefault(parent, []).append(pid)
    order, queue = [], [root]
    while queue:
        pid = queue.pop()
        order.append(pid)
        queue += children.get(pid, [])
    return [process for process in map(Process.of, order) if process is not None]


def named(roots: Iterable[Process], program: str) -> Process | None:
    """The first of these processes that runs `program`."""
    for process in roots:
        with contextlib.suppress(OSError):
            first = Path(f"/proc/{process.pid}/cmdline").read_bytes().split(b"\0")[0].decode(errors="replace")
            if Path(first).name == program:
                return process
    return None


def kill_at_once(processes: Iterable[Process]) -> None:
    """SIGKILL all of them as a power cut does: none gets to see another one's end."""
    doomed = list(processes)
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for process in doomed:
            process.send(number)


def marked(folder: Path) -> list[str]:
    """Command lines of living processes that belong to the lab in `folder`, this one and its threads left out."""
    mark, own = str(folder), os.getpid()
    found = []
    for pid, (_, arguments) in table().items():
        environment = b""
        with contextlib.suppress(OSError):
            environment = Path(f"/proc/{pid}/environ").read_bytes()
        if pid != own and (any(mark in part for part in arguments) or mark.encode() in environment):
            found.append(f"{pid} {' '.join(arguments)[:200]}")
    return found
