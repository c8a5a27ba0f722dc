"""Structured log lines on stderr: one JSON object each, an event name and its fields."""

from __future__ import annotations

import json
import sys
import threading
from datetime import UTC, datetime
from typing import Any, TextIO

_lock = threading.Lock()


def event(name: str, /, **fields: Any) -> None:
    """Write one line: when, which event, in which process part, and its fields. Values JSON cannot hold are written as text."""
    write(sys.stderr, name, fields)


def write(stream: TextIO, name: str, fields: dict[str, Any]) -> None:
    """The same to a stream of the caller's choice."""
    line = json.dumps(
        {"at": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": name, **fields}, default=str
    )
    # One write per line, so that threads do not mix theirs.
    with _lock:
        stream.write(line + "\n")
        stream.flush()
