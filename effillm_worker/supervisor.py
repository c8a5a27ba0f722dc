"""The process between an actor and its measuring child: it holds the device's lock and ends the child's whole tree.

Standard library only, run by path with `python -I`, so that nothing an environment holds can break it. It leads a
session of its own, is subreaper of everything the child forks, and lives exactly as long as the child. End of file on
its control pipe (the actor is gone), a deadline, or a progress counter that stands still ends the tree; how it ended is
the last line it writes to the status pipe.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import resource
import runpy
import select
import signal
import sys
import time
from pathlib import Path
from typing import Any

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
EXIT_BUSY = 75
GRACE_S = 2.0  # between SIGTERM and SIGKILL
REAP_S = 4.0  # after SIGKILL: a process in an uninterruptible call may take this long, then it is left to the lock
TICK_S = 0.5  # the progress counter is read at most this often
GAP_FACTOR = 20  # a cell hangs when it stands still this many times its own longest gap between two tokens
LOG_BYTES = 65_536
LOG_LINES = 60
LINE_CHARS = 600

LIBC = ctypes.CDLL(None, use_errno=True)


def main() -> int:
    """Take the lock, start the child, watch it to its end. Exit 75: another holder has the device."""
    order = json.loads(sys.argv[1])
    for name in ("control", "status"):
        os.set_inheritable(order["fds"][name], False)  # a child holding these would hide our end from the actor
    status: int = order["fds"]["status"]
    LIBC.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    lock = take_lock(Path(order["lock"]), order["label"])
    if isinstance(lock, str):
        tell(status, event="busy", holder=lock)
        return EXIT_BUSY
    Watch(order, status).run()
    return 0


def take_lock(path: Path, label: str) -> int | str:
    """Descriptor of the locked file at `path`, or what its holder wrote into it when another process has it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return os.read(descriptor, 500).decode(errors="replace").strip() or "unknown"
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"supervisor {os.getpid()}: {label}\n".encode())
    os.set_inheritable(descriptor, True)  # an orphaned child keeps its device
    return descriptor


def tell(descriptor: int, **fields: Any) -> None:
    """Write one line to the status pipe; an actor that is gone is no error."""
    data = (json.dumps(fields) + "\n").encode()
    with contextlib.suppress(BrokenPipeError):
        while data:
            data = data[os.write(descriptor, data) :]


class Watch:
    """One child from fork to last line."""

    def __init__(self, order: dict[str, Any], status: int) -> None:
        self.order = order
        self.status = status
        self.control: int = order["fds"]["control"]
        self.log, self.log_writer = os.pipe()
        self.wake, self.wake_writer = os.pipe()
        self.child = 0
        self.ended: int | None = None
        self.usage: resource.struct_rusage | None = None
        self.tail = b""
        self.pending = b""
        self.why = ""
        self.deadline: float | None = None
        self.progress = Progress(order["fds"].get("progress"))

    def run(self) -> None:
        """Start the child, wait for what comes first, end the tree, say how it ended."""
        for descriptor in (self.wake, self.wake_writer):
            os.set_blocking(descriptor, False)
        signal.set_wakeup_fd(self.wake_writer, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: self._stop("signalled"))
        # PDEATHSIG follows the forking thread, and this is the main and only one.
        report = self._fork()
        tell(self.status, event="started", pid=self.child, **report)
        before = oom_kills(Path("/proc/vmstat"))
        while self.ended is None and not self.why:
            self._wait(self._pause())
            self._check_time()
        progressed = self.progress.continues(time.monotonic())
        self._end()
        tell(
            self.status,
            event="ended",
            why=self.why or "exited",
            **decode(self.ended),
            oom_kills=sum(oom_kills(Path(group) / name) for group in self.order["cgroups"]
                          for name in ("memory.events", "memory.oom_control")),
            machine_oom_kills=oom_kills(Path("/proc/vmstat")) - before,
            max_rss_bytes=self.usage.ru_maxrss * 1024 if self.usage else None,
            moved=self.progress.moved,
            progressed=progressed,
            left=len(descendants(os.getpid())),
            log=last_lines(self.tail),
        )  # fmt: skip
        for group in self.order["cgroups"]:
            with contextlib.suppress(OSError):
                os.rmdir(group)  # noqa: PTH106 - a cgroup directory holds files, rmdir is how it goes

    def _fork(self) -> dict[str, Any]:
        """Fork and exec the child; what it could and could not set up before exec."""
        answer, answer_writer = os.pipe()
        supervisor = os.getpid()
        self.child = os.fork()
        if self.child == 0:
            try:
                become_child(self.order, supervisor, self.log_writer, answer_writer)
            finally:
                os._exit(127)
        for descriptor in (answer_writer, self.log_writer, self.order["fds"]["command"], self.order["fds"]["report"]):
            os.close(descriptor)
        with open(answer, "rb") as pipe:  # noqa: PTH123 - a descriptor, not a path
            report: dict[str, Any] = json.loads(pipe.read() or b"{}")
        return report

    def _pause(self) -> float | None:
        """Seconds until something must be looked at; None: only an event matters."""
        if self.deadline is None:
            return None
        left = max(0.0, self.deadline - time.monotonic())
        return min(left, TICK_S) if self.progress.watched else left

    def _wait(self, pause_s: float | None) -> None:
        """Block for one event at most `pause_s` and take in what it brought."""
        poll = select.poll()
        for descriptor in (self.control, self.log, self.wake):
            if descriptor >= 0:
                poll.register(descriptor, select.POLLIN)
        for descriptor, _ in poll.poll(None if pause_s is None else pause_s * 1000 + 1):
            if descriptor == self.control:
                self._command()
            elif descriptor == self.log:
                self._drain_log()
            else:
                os.read(self.wake, 4096)
        self._reap()

    def _command(self) -> None:
        data = os.read(self.control, 65_536)
        if not data:
            self._stop("actor_gone")
            self.control = -1
        *lines, self.pending = (self.pending + data).split(b"\n")
        for line in lines:
            order = json.loads(line)
            if order["op"] == "watch":
                self.deadline = time.monotonic() + order["deadline_s"]
                self.progress.start(order["hang_s"])
            elif order["op"] == "idle":
                self.deadline = None
                self.progress.watched = False
            else:
                self._stop(order["why"])

    def _stop(self, why: str) -> None:
        self.why = self.why or why

    def _check_time(self) -> None:
        now = time.monotonic()
        self.progress.look(now)
        if self.ended is None and self.deadline is not None:
            if now >= self.deadline:
                self._stop("deadline")
            elif self.progress.hangs(now):
                self._stop("hang")

    def _drain_log(self) -> None:
        data = os.read(self.log, 65_536)
        if not data:
            os.close(self.log)
            self.log = -1
        self.tail = (self.tail + data)[-LOG_BYTES:]

    def _reap(self) -> None:
        """Collect every process that has ended; orphans of the child are ours too."""
        pid = -1
        with contextlib.suppress(ChildProcessError):
            while pid:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
                if pid == self.child:
                    self.ended, self.usage = status, usage

    def _end(self) -> None:
        """Leave no process: SIGTERM and a grace unless the actor is gone, then SIGKILL until nothing is left."""
        if self.ended is None and self.why != "actor_gone":
            for pid in [self.child, *descendants(os.getpid())]:
                send(pid, signal.SIGTERM)
            until = time.monotonic() + GRACE_S
            while self.ended is None and self.control >= 0 and time.monotonic() < until:
                self._wait(until - time.monotonic())
        until = time.monotonic() + REAP_S
        while time.monotonic() < until:
            left = self._kill_all()
            self._reap()
            if not left and self.ended is not None:
                break
            time.sleep(0.005)  # SIGKILL is on its way; there is no descriptor that tells when the last orphan is gone
        self._drain_rest()

    def _kill_all(self) -> int:
        """Kill everything below us; processes seen alive. Where a cgroup may, forking is stopped first."""
        for group in self.order["cgroups"]:
            write(Path(group) / "pids.max", "0")
            write(Path(group) / "cgroup.kill", "1")
        found = descendants(os.getpid())
        for number in (signal.SIGSTOP, signal.SIGKILL):  # what is stopped cannot fork while the others are killed
            for pid in found:
                send(pid, number)
        return len(found)

    def _drain_rest(self) -> None:
        with contextlib.suppress(BlockingIOError):
            for _ in range(64):  # bounded: 4 MiB, more than a pipe holds
                if self.log >= 0:
                    os.set_blocking(self.log, False)
                    self._drain_log()


class Progress:
    """The counter the child bumps per token, in shared memory, and how long it has stood still."""

    def __init__(self, descriptor: int | None) -> None:
        self.descriptor = descriptor
        self.watched = False
        self.moved = False
        self.hang_s = 0.0
        self.value = 0
        self.since = 0.0
        self.longest = 0.0

    def start(self, hang_s: float | None) -> None:
        """A new command begins: nothing has moved yet."""
        self.watched = self.descriptor is not None and hang_s is not None
        self.hang_s = hang_s or 0.0
        self.moved = False
        self.longest = 0.0
        self.value = self._read()
        self.since = time.monotonic()

    def look(self, now: float) -> None:
        """Take in the counter."""
        value = self._read()
        if value != self.value:
            self.longest = max(self.longest, now - self.since - TICK_S)  # it may have moved a tick before this look
            self.value, self.since, self.moved = value, now, True

    def hangs(self, now: float) -> bool:
        """No token for far longer than the slowest so far. Before the first one only the deadline can tell."""
        return self.watched and self.moved and now - self.since > max(self.hang_s, GAP_FACTOR * self.longest)

    def continues(self, now: float) -> bool:
        """Tokens came, and the last one not longer ago than this cell's own pace allows."""
        self.look(now)
        return self.moved and now - self.since <= max(2 * TICK_S, 4 * self.longest)

    def _read(self) -> int:
        return 0 if self.descriptor is None else int.from_bytes(os.pread(self.descriptor, 8, 0), "little")


def become_child(order: dict[str, Any], supervisor: int, log: int, answer: int) -> None:
    """In the forked process: tie it to the supervisor, limit it, exec. Tells `answer` what could not be done."""
    os.setpgid(0, 0)
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != supervisor:  # it died before the line above took effect
        os._exit(126)
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)
    report = {"limit": limit_memory(order), "affinity": set_affinity(order["processors"])}
    report["network"] = runpy.run_path(order["offline"], run_name="__main__")["network"] if order["offline"] else "host"
    write(Path("/proc/self/oom_score_adj"), "1000")  # should the box run out, this process goes first
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file of a loaded model fills the disk
    for source, target in ((os.open(os.devnull, os.O_RDONLY), 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    for name in ("command", "report", "progress"):
        if order["fds"].get(name) is not None:
            os.set_inheritable(order["fds"][name], True)
            os.environ[f"EFFILLM_{name.upper()}_FD"] = str(order["fds"][name])
    try:
        os.chdir(order["cwd"])
        os.write(answer, json.dumps(report).encode())
        os.execvpe(order["command"][0], order["command"], os.environ)  # noqa: S606 - no shell is wanted
    except OSError as error:
        os.write(2, f"cannot start {order['command'][0]}: {error.strerror}\n".encode())


def limit_memory(order: dict[str, Any]) -> str:
    """Put this process under the cgroups made for it, else under RLIMIT_DATA; the name of what holds its memory."""
    joined = [group for group in order["cgroups"] if write(Path(group) / "cgroup.procs", "0")]
    limit = order["memory_limit_bytes"]
    if limit is None:
        return "none"
    if order["memory_cgroup"] in joined:
        return "cgroup"
    # Private writable memory only: mapped weight files and address space that CUDA merely reserves do not count.
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    return "rlimit_data"


def set_affinity(processors: list[int]) -> str:
    """Bind this process to the device's processors; what came of it."""
    try:
        if processors:
            os.sched_setaffinity(0, processors)
    except OSError as error:
        return f"not set: {error.strerror}"
    return ",".join(map(str, processors)) or "all"


def descendants(root: int) -> list[int]:
    """Every living process below `root`, by one pass over /proc; zombies are not living."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):  # noqa: PTH208 - names are all that is wanted
        if entry.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError):
                state, parent = Path(f"/proc/{entry}/stat").read_text(errors="replace").rpartition(")")[2].split()[:2]
                children.setdefault(int(parent), []).append(int(entry) if state not in "ZX" else -int(entry))
    found: list[int] = []
    queue = [root]
    while queue:
        below = children.get(queue.pop(), [])
        found += [pid for pid in below if pid > 0]
        queue += [abs(pid) for pid in below]
    return found


def send(pid: int, number: signal.Signals) -> None:
    """Signal a process of our own tree that may be gone: its parent is us or one of ours, so its id is not reused yet."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def write(path: Path, text: str) -> bool:
    """Write to a kernel file that may not exist or not be ours; whether it worked."""
    try:
        with open(os.open(path, os.O_WRONLY), "wb", buffering=0) as file:  # noqa: PTH123 - must never create it
            file.write(text.encode())
    except OSError:
        return False
    return True


def oom_kills(path: Path) -> int:
    """The kernel's count `oom_kill` in this file, 0 without one."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))


def decode(status: int | None) -> dict[str, Any]:
    """Exit code or name of the signal behind a wait status; both None when the process could not be reaped."""
    code = None if status is None else os.waitstatus_to_exitcode(status)
    if code is None or code >= 0:
        return {"code": code, "signal": None}
    known = {number.value: number.name for number in signal.Signals}
    return {"code": None, "signal": known.get(-code, f"signal {-code}")}


def last_lines(tail: bytes) -> list[str]:
    """The last lines of a log, printable, cut so that all of them fit into a pipe nobody reads yet."""
    lines = ["".join(c if c.isprintable() else " " for c in line)[:LINE_CHARS].rstrip()
             for line in tail.decode(errors="replace").splitlines()[-LOG_LINES:]]  # fmt: skip
    while len(json.dumps(lines)) > LOG_BYTES // 2:
        del lines[0]
    return lines


if __name__ == "__main__":
    sys.exit(main())
