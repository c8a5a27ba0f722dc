"""A channel without a parent: acknowledges everything at once and keeps what was reported."""

from __future__ import annotations

import io
from dataclasses import dataclass, field

from effillm_worker.measure.channel import Channel
from effillm_worker.messages import Progress, Report, Stage, Window


@dataclass
class Reports:
    """Everything said, in order."""

    all: list[Report] = field(default_factory=list)

    def stages(self) -> list[Stage]:
        return [report for report in self.all if isinstance(report, Stage)]

    def progress(self) -> list[Progress]:
        return [report for report in self.all if isinstance(report, Progress)]

    def windows(self) -> list[bool]:
        return [report.open for report in self.all if isinstance(report, Window)]


class RecordingChannel(Channel):
    """The real channel's interface over a list."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO(), io.BytesIO())
        self.reports = Reports()
        self.ticks = 0

    def send(self, report: Report) -> None:
        self.reports.all.append(report)

    def stage(self, name: str, allocator: dict[str, int]) -> None:
        self.send(Stage(stage=name, allocator=allocator))

    def tick(self) -> None:
        self.ticks += 1
