"""Running `effillm` as a user does: a process of its own, its output, and nothing left behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

MARK = "EFFILLM_TEST_MARK"
WITHIN_S = 120


def environment(**settings: str) -> dict[str, str]:
    """This process's environment without settings of EffiLLM or Ray, buffered as a user's is, and with those given."""
    others = ("EFFILLM_", "RAY_", "PYTHONUNBUFFERED")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(others)}
    return kept | {"COLUMNS": "200", "NO_COLOR": "1"} | settings


def effillm(
    *arguments: str, stdin: str | None = None, within_s: float = WITHIN_S, **settings: str
) -> subprocess.CompletedProcess[str]:
    """The finished command; EFFILLM_* settings as keywords."""
    return subprocess.run(
        [sys.executable, "-m", "effillm_server.cli", *arguments],
        env=environment(**settings), input=stdin, capture_output=True, text=True, timeout=within_s, check=False,
    )  # fmt: skip


@dataclass
class Up:
    """A running `effillm up`: what it said when it was ready, and the settings to speak to it."""

    process: subprocess.Popen[str]
    ready: dict[str, Any]
    settings: dict[str, str]
    log: Path

    @property
    def url(self) -> str:
        return str(self.ready["url"])

    def effillm(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """A finished command that speaks to this server."""
        return effillm(*arguments, **self.settings, EFFILLM_URL=self.url)

    def stop(self, number: signal.Signals = signal.SIGINT) -> int:
        """Sends the signal; the exit code."""
        self.process.send_signal(number)
        return self.process.wait(WITHIN_S)

    def left_behind(self) -> list[str]:
        """Command lines of the processes that belong to this server and still run."""
        return belonging(self.settings)

    def said(self) -> str:
        """Everything on its stderr so far."""
        return self.log.read_text()


@contextmanager
def up(folder: Path, *arguments: str, **settings: str) -> Iterator[Up]:
    """An `effillm up` on a data directory below `folder` that is ready; ended at the end, however the test ends."""
    marked = {
        "EFFILLM_DATA_DIR": str(folder / "data"), "EFFILLM_LOCK_DIR": str(folder / "locks"), MARK: uuid.uuid4().hex,
    } | settings  # fmt: skip
    log = folder / "up.err"
    command = [sys.executable, "-m", "effillm_server.cli", "up", "--port", "0", "--json", *arguments]
    with log.open("w") as stderr:
        process = subprocess.Popen(
            command, env=environment(**marked), stdout=subprocess.PIPE, stderr=stderr, text=True, start_new_session=True
        )
    try:
        yield Up(process, read_document(process, log), marked, log)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(WITHIN_S)
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def read_document(process: subprocess.Popen[str], log: Path) -> dict[str, Any]:
    """The JSON document that the process prints when it is ready."""
    assert process.stdout is not None
    lines: list[str] = []
    for line in process.stdout:
        lines.append(line)
        if line == "}\n":
            return dict(json.loads("".join(lines)))
    raise AssertionError(f"up ended with {process.wait()} before it was ready: {log.read_text()}")


def belonging(settings: Mapping[str, str]) -> list[str]:
    """Command lines of running processes that carry the mark of `settings` or work in its data directory."""
    mark, data = settings[MARK], settings["EFFILLM_DATA_DIR"]
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.status() != psutil.STATUS_ZOMBIE and (
                process.environ().get(MARK) == mark or process.cwd().startswith(data)
            ):
                found.append(f"{process.pid} {' '.join(process.cmdline())}")
    return found
