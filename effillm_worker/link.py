"""The actor's end of its pipes to one supervisor and one child: blocking reads, bounded lines, an end that always comes."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from effillm_worker.ending import Ending
from effillm_worker.environment import redact
from effillm_worker.messages import REPORT, Command, Report

SUPERVISOR = Path(__file__).with_name("supervisor.py")
LINE_BYTES = 512 * 2**20  # a report of ten million tokens' timestamps fits; an endless line ends the child
START_S = 30.0
LAST_WORD_S = 8.0  # beyond a deadline: the supervisor's grace and reaping, and a margin
MARKER = "EFFILLM_CHILD"
COUNTER_BYTES = 8
READ_BYTES = 1 << 20


class Found(Enum):
    """What a read of a pipe brought."""

    DATA = "data"
    NOTHING = "nothing"
    END = "end"


class Malformed(Exception):
    """The child said something on its report pipe that is no report."""


class Link:
    """One supervisor with its child, from the outside. Reads belong to one thread; `order` may come from any."""

    def __init__(self, order: dict[str, Any], environment: Mapping[str, str], child_id: str) -> None:
        self.child_id = child_id
        self.environment = dict(environment) | {MARKER: child_id}
        self.ending: Ending | None = None
        self._lock = threading.Lock()
        self._lines: deque[bytes] = deque()
        self._partial: dict[int, list[bytes]] = {}
        self._size = 0
        progress = os.memfd_create("effillm-progress")
        os.ftruncate(progress, COUNTER_BYTES)
        control, self._control = os.pipe()
        command, self._command = os.pipe()
        self._report, report = os.pipe()
        self._status, status = os.pipe()
        theirs = {"control": control, "command": command, "report": report, "status": status, "progress": progress}
        try:
            self.supervisor = subprocess.Popen(
                [sys.executable, "-I", str(SUPERVISOR), json.dumps(order | {"fds": theirs})],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=self.environment,
                pass_fds=tuple(theirs.values()),
                start_new_session=True,
            )
        except OSError:
            self._close()
            raise
        finally:
            for descriptor in theirs.values():
                os.close(descriptor)
        for descriptor in (self._report, self._status, self._command):
            os.set_blocking(descriptor, False)

    def greeting(self) -> dict[str, Any]:
        """The supervisor's first word: `started` with the child's id, or `busy`. Empty when it died or kept silent."""
        until = time.monotonic() + START_S
        while _ready(max(0.0, until - time.monotonic()), self._status):
            lines, found = self._take(self._status)
            if lines:
                greeting: dict[str, Any] = json.loads(lines[0])
                for line in lines[1:]:
                    self._status_line(line)
                return greeting
            if found is Found.END:
                break
        return {}

    def order(self, **fields: Any) -> None:
        """Tell the supervisor; harmless when it is gone. Any thread."""
        with self._lock, contextlib.suppress(BrokenPipeError):
            if self._control >= 0:
                os.write(self._control, (json.dumps(fields) + "\n").encode())

    def say(self, command: Command, until: float) -> None:
        """Write a command to the child; gives up quietly when it is gone or does not read, its ending then tells."""
        data = command.model_dump_json().encode() + b"\n"
        with contextlib.suppress(BrokenPipeError):
            while data and self.ending is None and (left := until - time.monotonic()) > 0:
                if _ready(left, self._command, events=select.POLLOUT):
                    data = data[os.write(self._command, data) :]

    def next(self, until: float) -> Report | Ending:
        """The next report, or how the child ended once all its reports are read. Raises Malformed.

        Blocks. Past `until` plus the supervisor's time to act the supervisor is dead or stopped: the tree is ended here.
        """
        while not self._lines:
            if self.ending is not None:
                return self.ending
            ready = _ready(max(0.0, until + LAST_WORD_S - time.monotonic()), self._report, self._status)
            if self._report in ready:
                self._read_reports()
            elif self._status in ready:
                self._read_status()
            else:
                self.destroy("deadline")
        return self._parse(self._lines.popleft())

    def wait(self, seconds: float) -> Ending:
        """How the child ended, unread reports dropped; ends it from here when that does not come in time."""
        until = time.monotonic() + seconds
        while self.ending is None:
            ready = _ready(max(0.0, until - time.monotonic()), self._report, self._status)
            if self._status in ready:
                self._read_status()
            elif self._report in ready:
                self._read_reports()
                self._lines.clear()
            else:
                self.destroy("killed")
        self.supervisor.wait()
        self._close()
        return self.ending

    def destroy(self, why: str) -> None:
        """End supervisor and tree from here, because the supervisor cannot."""
        self.supervisor.kill()  # the child has asked the kernel to die with it
        self.supervisor.wait()
        until = time.monotonic() + 3.0
        while (left := marked(self.child_id, session=self.supervisor.pid)) and time.monotonic() < until:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)  # orphans of a killed supervisor are not ours to wait for
        self.ending = self.ending or Ending(why=why, left=len(left))

    def _read_reports(self) -> bool:
        """Take in what is there; whether there may be more."""
        lines, found = self._take(self._report)
        self._lines += lines
        if found is Found.END:
            os.close(self._report)
            self._report = -1
        return found is Found.DATA

    def _read_status(self) -> None:
        lines, found = self._take(self._status)
        for line in lines:
            self._status_line(line)
        if found is Found.END and self.ending is None:
            self.destroy("supervisor_lost")
        while self.ending is not None and self._report >= 0 and self._read_reports():
            pass  # what it said before it ended counts

    def _status_line(self, line: bytes) -> None:
        fields = json.loads(line)
        if fields.pop("event") == "ended":
            log = redact(fields.pop("log"), self.environment)
            self.ending = Ending(**fields, log=log)

    def _take(self, descriptor: int) -> tuple[list[bytes], Found]:
        """Whole lines that can be read now, and what was found."""
        try:
            data = os.read(descriptor, READ_BYTES)
        except BlockingIOError:
            return [], Found.NOTHING
        if not data:
            return [], Found.END
        parts = self._partial.setdefault(descriptor, [])
        first, *more = data.split(b"\n")
        parts.append(first)
        if sum(map(len, parts)) > LINE_BYTES:
            raise Malformed(f"a report of more than {LINE_BYTES:,} bytes")
        if not more:
            return [], Found.DATA
        *whole, rest = more
        self._partial[descriptor] = [rest]
        return [b"".join(parts), *whole], Found.DATA

    def _parse(self, line: bytes) -> Report:
        # What a framework says of its failure may quote the token it failed with.
        text = redact((line.decode(errors="backslashreplace"),), self.environment)[0]
        try:
            return REPORT.validate_json(text)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"]))
            raise Malformed(f"{first['msg']} at {where or 'the line'}: {text[:200]!r}") from None

    def _close(self) -> None:
        with self._lock:
            for name in ("_control", "_command", "_report", "_status"):
                if (descriptor := getattr(self, name, -1)) >= 0:
                    os.close(descriptor)
                setattr(self, name, -1)


def _ready(seconds: float, *descriptors: int, events: int = select.POLLIN) -> list[int]:
    """Which of these open descriptors have something to say within `seconds`; blocks."""
    poll = select.poll()
    for descriptor in descriptors:
        if descriptor >= 0:
            poll.register(descriptor, events)
    return [descriptor for descriptor, _ in poll.poll(seconds * 1000)]


def marked(child_id: str, session: int | None = None) -> list[int]:
    """Living processes that carry this child's mark in their environment, or belong to its supervisor's session.

    A process on its way out has no environment any more but still its session.
    """
    wanted = f"{MARKER}={child_id}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, IndexError):
                fields = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()
                is_ours = int(fields[3]) == session or wanted in (entry / "environ").read_bytes().split(b"\0")
                if is_ours and fields[0] not in "ZX":
                    found.append(int(entry.name))
    return found
