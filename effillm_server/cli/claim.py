"""Who runs on a data directory: one `up` or `run` at a time, and where it answers."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from typing import IO, Any

from effillm_server.errors import BadInput, Conflict

FILE = "up.json"


class Claim:
    """The exclusive right to a data directory, held as a file lock, so that it ends with the process however it ends."""

    def __init__(self, data_dir: Path) -> None:
        """Raises BadInput when the directory cannot be used, Conflict when another process holds it."""
        try:
            data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._file: IO[str] = (data_dir / FILE).open("a+", encoding="utf-8")
        except OSError as error:
            raise BadInput(
                f"the data directory {data_dir} cannot be used ({error.strerror}): "
                "name one that you may write to in EFFILLM_DATA_DIR",
                field="EFFILLM_DATA_DIR",
            ) from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = read(data_dir)
            self._file.close()
            raise Conflict(
                f"EffiLLM already runs on {data_dir} (process {holder.get('pid', 'unknown')}"
                f"{', ' + holder['url'] if 'url' in holder else ''}): use that one, stop it, or set another EFFILLM_DATA_DIR"
            ) from None
        self.publish({})

    def publish(self, facts: dict[str, Any]) -> None:
        """Writes what others may want to know; `pid` is always there."""
        self._file.seek(0)
        self._file.truncate()
        json.dump({"pid": os.getpid(), **facts}, self._file)
        self._file.flush()

    def release(self) -> None:
        """Empties the file and gives the directory free."""
        self._file.seek(0)
        self._file.truncate()
        self._file.close()


def read(data_dir: Path) -> dict[str, Any]:
    """What the holder of a data directory published; empty when there is none."""
    try:
        value = json.loads((data_dir / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def running(data_dir: Path) -> dict[str, Any]:
    """Like `read`, but empty when the holder has ended without tidying up."""
    try:
        with (data_dir / FILE).open(encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return read(data_dir)
    except OSError:
        pass
    return {}
