"""Outcomes that the ledger has not taken yet, on disk: they outlive the actor and the database's absence."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from effillm_server.contract.base import Contract
from effillm_server.contract.outcome import Outcome
from effillm_worker.log import event

SUFFIX = ".outcome.json"


class SpoolFull(Exception):
    """The disk did not take the outcome; nothing of it was left behind."""


class Spooled(Contract):
    """An outcome and the lease it belongs to. `boot_id` is the actor's that held the lease."""

    device_id: str
    boot_id: str
    job_id: int
    fence: int
    outcome: Outcome

    @property
    def name(self) -> str:
        return f"{self.job_id:020d}-{self.fence:010d}{SUFFIX}"


class Spool:
    """A folder of one device's outcomes, one file each, complete or absent."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        for torn in folder.glob("*.tmp"):
            torn.unlink()

    def add(self, entry: Spooled) -> None:
        """Returns once the outcome is on disk. Raises SpoolFull."""
        torn = self._folder / (entry.name + ".tmp")
        try:
            with torn.open("wb") as file:
                file.write(entry.model_dump_json().encode())
                file.flush()
                os.fsync(file.fileno())
            torn.replace(self._folder / entry.name)
            self._sync_folder()
        except OSError as error:
            torn.unlink(missing_ok=True)
            raise SpoolFull(f"the outcome of job {entry.job_id} does not fit into {self._folder}: {error}") from error

    def remove(self, entry: Spooled) -> None:
        """Forget an outcome that the ledger has taken or refused."""
        (self._folder / entry.name).unlink(missing_ok=True)

    def entries(self) -> Iterator[Spooled]:
        """What waits, oldest job first. A file that is not an outcome is set aside under another name and reported."""
        for path in sorted(self._folder.glob(f"*{SUFFIX}")):
            try:
                yield Spooled.model_validate_json(path.read_bytes())
            except FileNotFoundError:
                continue  # taken by the ledger since the folder was listed
            except ValueError as error:
                aside = path.with_suffix(".unreadable")
                path.replace(aside)
                event("spool.unreadable", file=str(aside), error=str(error))

    def _sync_folder(self) -> None:
        """The name must be on disk too, not only the content."""
        descriptor = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
