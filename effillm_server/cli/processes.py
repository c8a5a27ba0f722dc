"""Child processes of `up` and `run`: started tethered to us, restarted when they die, stopped in order, none left behind."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import shorten

from effillm_server.errors import Unavailable

TETHER = Path(__file__).with_name("tether.py")
PR_SET_CHILD_SUBREAPER = 36
POLL_S = 0.05
LARGEST_LOG_BYTES = 10_000_000
# A message of ours fits; some libraries write an essay, which is in the log.
LONGEST_QUOTE = 300
# Deaths within the window after which a restart is given up; each restart waits twice as long as the one before.
MAX_DEATHS = 5
DEATH_WINDOW_S = 120.0
FIRST_RESTART_DELAY_S = 0.5
# Our processes say with this code that what they were given cannot work, so that a restart would not help.
BAD_INPUT_EXIT = 2


@dataclass(frozen=True)
class Service:
    """How one long-running child is started and ended. `user` is whom root becomes for it."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    log: Path
    stop_signal: signal.Signals = signal.SIGTERM
    stop_within_s: float = 20.0
    user: str | None = None
    directory: Path | None = None


@dataclass
class Running:
    """A service with its present process. `restart_at` is set while it is down."""

    service: Service
    process: subprocess.Popen[bytes]
    deaths: list[float] = field(default_factory=list)
    restart_at: float | None = None


class Services:
    """The children in the order they were started. All methods belong to the main thread: the tether follows it."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._running: list[Running] = []
        self.hurry = False
        adopt_orphans()

    def start(self, service: Service) -> None:
        """Starts `service`; it is watched from now on."""
        self._running.append(Running(service, spawn(service)))

    def check(self) -> None:
        """Restarts what has died. Raises Unavailable when one dies again and again, or says that it never can run."""
        now = time.monotonic()
        for running in self._running:
            if running.restart_at is None:
                if running.process.poll() is not None:
                    self._died(running, now)
            elif now >= running.restart_at:
                running.process, running.restart_at = spawn(running.service), None
                self._say(f"{running.service.name} restarted")
        reap_orphans({running.process.pid for running in self._running})

    def _died(self, running: Running, now: float) -> None:
        service, code = running.service, running.process.returncode
        running.deaths = [at for at in running.deaths if now - at < DEATH_WINDOW_S] + [now]
        why = f"{service.name} {ending(code)}: {last_line(service.log)}"
        if code == BAD_INPUT_EXIT or len(running.deaths) >= MAX_DEATHS:
            times = f" {len(running.deaths)} times" if len(running.deaths) > 1 else ""
            raise Unavailable(f"gave up{times}: {why} (log: {service.log})")
        delay = FIRST_RESTART_DELAY_S * 2 ** (len(running.deaths) - 1)
        running.restart_at = now + delay
        self._say(f"{why} (log: {service.log}); restarting in {delay:g} s")

    def stop(self) -> None:
        """Ends all services, last started first, then whatever they left behind. `hurry` cuts the patience short."""
        while self._running:
            running = self._running.pop()
            self._stop(running)
        end_descendants()

    def _stop(self, running: Running) -> None:
        process, service = running.process, running.service
        if process.poll() is None:
            process.send_signal(service.stop_signal)
            deadline = time.monotonic() + service.stop_within_s
            while process.poll() is None and time.monotonic() < deadline and not self.hurry:
                time.sleep(POLL_S)
            if process.poll() is None and not self.hurry:
                self._say(f"{service.name} did not stop within {service.stop_within_s:g} s and was killed")
        # The group leads its own session, so this reaches nobody else; it may be empty by now.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def spawn(service: Service) -> subprocess.Popen[bytes]:
    """The service's new process, leading a session of its own so that the terminal's Ctrl-C reaches only us."""
    rotate(service.log)
    tether = (
        sys.executable, "-I", "-S", str(TETHER), str(os.getpid()), str(int(service.stop_signal)), service.user or "-",
    )  # fmt: skip
    with service.log.open("ab") as log:
        return subprocess.Popen(
            (*tether, *service.command),
            env=dict(service.environment),
            cwd=service.directory,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def rotate(log: Path) -> None:
    """Moves a log that has grown large aside; one old one is kept."""
    if log.exists() and log.stat().st_size > LARGEST_LOG_BYTES:
        log.replace(log.with_suffix(".log.1"))


def ending(code: int) -> str:
    """How a process ended, in words."""
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"was ended by {signal.Signals(-code).name}"
    return f"stopped with exit code {code}"


def last_line(log: Path) -> str:
    """The last line a process wrote that says anything."""
    with contextlib.suppress(OSError), log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 8192))
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
        if lines:
            return shorten(in_words(lines[-1]).removeprefix("error: "), LONGEST_QUOTE, placeholder=" …")
    return "it wrote nothing"


def in_words(line: str) -> str:
    """What a structured log line says, when it has words for it; other lines unchanged."""
    with contextlib.suppress(ValueError):
        fields = json.loads(line)
        if isinstance(fields, dict):
            return str(
                next((fields[name] for name in ("error", "message", "reason", "event") if fields.get(name)), line)
            )
    return line


def adopt_orphans() -> None:
    """Makes this process the parent of every descendant whose own parent dies, so that `end_descendants` finds it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def reap_orphans(ours: set[int]) -> None:
    """Takes note of the end of adopted processes, which would stay in the process table for as long as we live."""
    with contextlib.suppress(ChildProcessError):
        while ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            if ended.si_pid in ours:  # its own `poll` wants to know how it ended
                return
            os.waitpid(ended.si_pid, 0)


def end_descendants() -> None:
    """Kills and reaps every descendant that is left, until there is none."""
    import psutil  # part of the `local` extra, like everything that needs this module

    me = psutil.Process()
    while descendants := me.children(recursive=True):
        for process in descendants:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        for process in me.children():
            with contextlib.suppress(psutil.NoSuchProcess, ChildProcessError):
                os.waitpid(process.pid, 0)
