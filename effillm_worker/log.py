"""Structured log lines on stderr: one JSON object each, an event name and its fields."""

from __future__ import annotations

import json
import sys
import threading
from datetime import UTC, datetime
from functools import cache
from typing import Any, TextIO

from effillm_server.redaction import Redaction

_lock = threading.Lock()


@cache
def _redaction() -> Redaction:
    """Made when the first line is written: by then the process has the environment it will keep."""
    return Redaction()


def event(name: str, /, **fields: Any) -> None:
    """Write one line: when, which event, in which process part, and its fields. Values JSON cannot hold are written as text."""
    write(sys.stderr, name, fields)


def write(stream: TextIO, name: str, fields: dict[str, Any]) -> None:
    """The same to a stream of the caller's choice."""
    at = datetime.now(UTC).isoformat(timespec="milliseconds")
    line = json.dumps(_redaction().within({"at": at, "event": name, **fields}))
    # One write per line, so that threads do not mix theirs.
    with _lock:
        stream.write(line + "\n")
        stream.flush()
