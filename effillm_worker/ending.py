"""How a child ended, and what that means for the cell it was given."""

from __future__ import annotations

from dataclasses import dataclass, replace

from effillm_server.contract.outcome import (
    Cancelled,
    ChildRecord,
    Exit,
    Fault,
    FaultKind,
    Infeasible,
    InfeasibleReason,
)
from effillm_server.contract.units import format_bytes, format_seconds

NEAR_LIMIT = 0.95
# A part of the work may take this many times as long as the longest before it, and always this long, and still be on its way: parts of a
# preparation differ more than tokens do.
PACE_FACTOR = 10
PACE_S = 60.0


@dataclass(frozen=True)
class Ending:
    """The supervisor's last word. `moved`: tokens came; `progressed`: they still did at the end.

    `why`: exited, deadline, hang, cancelled, killed, actor_gone, signalled, supervisor_lost.
    """

    why: str
    code: int | None = None
    signal: str | None = None
    oom_kills: int = 0
    machine_oom_kills: int = 0
    max_rss_bytes: int | None = None
    moved: bool = False
    progressed: bool = False
    left: int = 0
    log: tuple[str, ...] = ()

    @property
    def exit(self) -> Exit:
        """The part of it that is kept with the attempt."""
        return Exit(code=self.code, signal=self.signal, log_tail=self.log)

    def with_progress(self, seen: bool) -> Ending:
        """This ending, knowing whether reports of progress still came: that counts where no counter was bumped."""
        return replace(self, progressed=self.progressed or (seen and not self.moved))


@dataclass
class Pace:
    """When parts of something long were reported as done: seconds on one clock, from its beginning."""

    last: float
    longest: float = 0.0
    is_begun: bool = False

    def note(self, now: float) -> None:
        """One more part is done."""
        self.longest = max(self.longest, now - self.last)
        self.last, self.is_begun = now, True

    def continues(self, now: float) -> bool:
        """Whether parts were done, the last of them not longer ago than the next may take."""
        return self.is_begun and now - self.last <= max(PACE_S, PACE_FACTOR * self.longest)


@dataclass(frozen=True)
class Doing:
    """What the child was asked to do when it ended, and under which limits."""

    what: str
    deadline_s: float
    memory_limit_bytes: int | None
    warm: bool
    child: ChildRecord


def classify(ending: Ending, doing: Doing) -> Infeasible | Fault | Cancelled:
    """The outcome of a cell whose child ended without an answer."""
    if ending.why == "cancelled":
        return Cancelled(exit=ending.exit, child=doing.child)
    if ending.why == "deadline" and ending.progressed:
        message = f"{doing.what} was still making progress after its limit of {format_seconds(doing.deadline_s)}"
        return _infeasible(InfeasibleReason.TIME_LIMIT, message, ending, doing)
    if ending.why in ("deadline", "hang"):
        return _fault(FaultKind.HUNG, f"{doing.what} made no progress and was ended ({ending.why})", ending, doing)
    if out_of_memory := _out_of_memory(ending, doing):
        return _infeasible(InfeasibleReason.OUT_OF_HOST_MEMORY, out_of_memory, ending, doing)
    return _fault(FaultKind.CRASHED, f"{doing.what}: {_how(ending)}", ending, doing)


def _out_of_memory(ending: Ending, doing: Doing) -> str | None:
    """Why this end is the memory's doing; None when it is not known to be."""
    limit = doing.memory_limit_bytes
    if ending.oom_kills:
        size = format_bytes(limit) if limit is not None else "its limit"
        return f"{doing.what}: the kernel ended the child at its memory limit of {size}"
    if ending.why == "exited" and ending.signal == "SIGKILL" and ending.machine_oom_kills:
        return f"{doing.what}: the kernel ended the child because the machine ran out of memory"
    died = ending.why == "exited" and ending.signal is not None
    if died and limit is not None and (ending.max_rss_bytes or 0) >= NEAR_LIMIT * limit:
        return (
            f"{doing.what}: ended by {ending.signal} at {format_bytes(ending.max_rss_bytes or 0)} resident, "
            f"its memory limit is {format_bytes(limit)}"
        )
    return None


def _how(ending: Ending) -> str:
    if ending.why == "supervisor_lost":
        return "its supervisor was killed, and the child with it"
    if ending.why != "exited":
        return f"the child was ended ({ending.why.replace('_', ' ')})"
    if ending.signal is not None:
        return f"the child was ended by {ending.signal}"
    if ending.code == 0:
        return "the child exited 0 without an answer"
    return f"the child exited with code {ending.code}"


def _infeasible(reason: InfeasibleReason, message: str, ending: Ending, doing: Doing) -> Infeasible:
    return Infeasible(reason=reason, message=message, warm=doing.warm, exit=ending.exit, child=doing.child)


def _fault(kind: FaultKind, message: str, ending: Ending, doing: Doing) -> Fault:
    return Fault(fault=kind, message=message, exit=ending.exit, child=doing.child)
