"""Work in a process of its own, beside this one whose memory is about to be measured; told as progress while it works."""

from __future__ import annotations

import contextlib
import math
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from effillm_worker.engines.base import Tick, silent

LOOK_S = 5.0


def run(
    command: Sequence[str],
    said: str,
    tick: Tick = silent,
    *,
    environment: Mapping[str, str] | None = None,
    limit_s: float = math.inf,
) -> subprocess.CompletedProcess[str]:
    """The finished process, given `said` on its standard input, with what it wrote. Raises subprocess.TimeoutExpired.

    `tick` is called with the seconds so far every few of them, if the process has used a processor since: one that waits for itself
    makes no progress. Whatever `tick` raises ends the process.
    """
    begin, spent = time.monotonic(), 0
    # From a file: a communicate() that is taken up again after its time-out writes nothing more of its input.
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8") as stdin,
        _started(command, stdin, said, environment) as process,
    ):
        try:
            while True:
                left = begin + limit_s - time.monotonic()
                try:
                    out, err = process.communicate(timeout=max(0.0, min(LOOK_S, left)))
                    return subprocess.CompletedProcess(command, process.returncode, out, err)
                except subprocess.TimeoutExpired:
                    if left <= LOOK_S:
                        raise
                if (now := _processor_ticks(process.pid)) > spent:
                    spent = now
                    tick(round(time.monotonic() - begin), 0)
        except BaseException:  # a tick that raises and Ctrl-C too: nothing is left running beside
            process.kill()
            raise


def _started(
    command: Sequence[str], stdin: IO[str], said: str, environment: Mapping[str, str] | None
) -> subprocess.Popen[str]:
    stdin.write(said)
    stdin.seek(0)
    return subprocess.Popen(
        command, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def _processor_ticks(pid: int) -> int:
    """Clock ticks all threads of a process have run, 0 when it cannot be told."""
    with contextlib.suppress(OSError, IndexError, ValueError):
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])
    return 0
