"""Logs as JSON lines: the event's name, its fields, the time."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime

from effillm_server.redaction import Redaction

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message"}


class JsonLines(logging.Formatter):
    """One JSON object a line, whatever was passed as `extra` as fields of it, without secrets."""

    def __init__(self, redaction: Redaction | None = None) -> None:
        super().__init__()
        self._redaction = redaction or Redaction()

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
        }
        line |= {name: value for name, value in vars(record).items() if name not in _STANDARD}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        # Before it is JSON, whose escapes would hide a secret from the redaction.
        return json.dumps(self._redaction.within(line))


def install(level: int = logging.INFO, redaction: Redaction | None = None) -> None:
    """Send every log of the process to stderr as JSON lines."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines(redaction))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    # One request to the model hub is no news; its failures are told to the user.
    logging.getLogger("httpx").setLevel(logging.WARNING)
