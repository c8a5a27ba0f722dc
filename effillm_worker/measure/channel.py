"""The child's end of its pipes: commands in, reports out, and a counter the parent reads without waking the child."""

from __future__ import annotations

import mmap
import os
from collections.abc import Mapping
from typing import BinaryIO, TypeVar

from effillm_worker.messages import COMMAND, Acknowledge, Command, Report, Stage

COMMAND_FD = "EFFILLM_COMMAND_FD"
REPORT_FD = "EFFILLM_REPORT_FD"
PROGRESS_FD = "EFFILLM_PROGRESS_FD"
COUNTER_BYTES = 8

C = TypeVar("C")


class ParentGone(Exception):
    """The command pipe has ended: nobody is listening any more."""


class ProtocolError(Exception):
    """The parent said something else than the protocol expects here."""


class Channel:
    """Commands and reports as JSON lines over two descriptors, beside a shared counter of generated tokens."""

    def __init__(self, commands: BinaryIO, reports: BinaryIO, counter: mmap.mmap | None = None) -> None:
        self._commands = commands
        self._reports = reports
        self._counter = counter
        self._tokens = 0

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Channel:
        """The channel whose descriptors the environment names. Raises ProtocolError when one is missing."""
        for name in (COMMAND_FD, REPORT_FD):
            if not environment.get(name, "").isdigit():
                raise ProtocolError(
                    f"{name} must name an open descriptor, found {environment.get(name)!r}: this program is started by "
                    "EffiLLM's worker, not by hand"
                )
        commands, reports = int(environment[COMMAND_FD]), int(environment[REPORT_FD])
        for descriptor in (commands, reports):
            os.set_inheritable(descriptor, False)
        counter = None
        if environment.get(PROGRESS_FD, "").isdigit():
            counter = mmap.mmap(int(environment[PROGRESS_FD]), COUNTER_BYTES)
        return cls(os.fdopen(commands, "rb"), os.fdopen(reports, "wb"), counter)

    def receive(self) -> Command:
        """The next command; blocks. Raises ParentGone at end of file."""
        line = self._commands.readline()
        if not line:
            raise ParentGone
        return COMMAND.validate_json(line)

    def expect(self, kind: type[C]) -> C:
        """The next command, which must be a `kind`. Raises ProtocolError for another."""
        command = self.receive()
        if not isinstance(command, kind):
            raise ProtocolError(f"expected {kind.__name__}, found {type(command).__name__}")
        return command

    def send(self, report: Report) -> None:
        """Write one report. Raises ParentGone when nobody reads any more."""
        try:
            self._reports.write(report.model_dump_json().encode() + b"\n")
            self._reports.flush()
        except BrokenPipeError:
            raise ParentGone from None

    def stage(self, name: str, allocator: dict[str, int]) -> None:
        """Stand still at a memory stage until the parent has read the memory from outside."""
        self.send(Stage(stage=name, allocator=allocator))
        self.expect(Acknowledge)

    def tick(self) -> None:
        """Count one more generated token where the parent can see it; no system call."""
        self._tokens += 1
        if self._counter is not None:
            self._counter[:COUNTER_BYTES] = self._tokens.to_bytes(COUNTER_BYTES, "little")
