"""One measuring child on one device: started under the device's lock, watched from outside, ended whatever it does."""

from __future__ import annotations

import fcntl
import os
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from effillm_server.contract.fingerprint import DeviceDeclaration
from effillm_server.contract.outcome import Cancelled, ChildRecord, Fault, FaultKind, Infeasible, Measured
from effillm_server.contract.quality import Quality
from effillm_server.contract.units import format_bytes
from effillm_worker import limits
from effillm_worker.ending import Doing, Ending, Pace, classify
from effillm_worker.environment import child_environment
from effillm_worker.link import LAST_WORD_S, Link, Malformed
from effillm_worker.messages import (
    Acknowledge,
    CellRecord,
    Close,
    Closed,
    Command,
    Failed,
    Judge,
    Judged,
    Open,
    Opened,
    Progress,
    Refused,
    Run,
    Stage,
    Window,
)  # fmt: skip
from effillm_worker.meters.nvml import NvmlError
from effillm_worker.witness import Instruments, Witness

CHILD_MODULE = "effillm_worker"
LEAVE_NETWORK = Path(__file__).with_name("offline.py")
# Said to the libraries too: where the kernel keeps the child on the network, they do not use it.
OFFLINE = {"HF_HUB_OFFLINE": "1"}
IDLE_GPU_BYTES = 10**9  # driver and display hold some hundred megabytes of an idle GPU

Answer = Opened | CellRecord | Judged | Closed | Refused | Failed
Failure = Infeasible | Fault | Cancelled


class DeviceBusy(Exception):
    """Another process holds the device's lock; the message names it."""


@dataclass(frozen=True)
class ChildSpec:
    """What a child is started with. `command` stands for the interpreter and module when given; `hang_s` is how long the
    progress counter may stand still, at least: 20 times the cell's own longest gap between tokens is always allowed. Without
    `network` it has none, where the kernel lets it go without."""

    device: DeviceDeclaration
    interpreter: str
    lock_dir: Path
    work_dir: Path
    threads: int
    memory_limit_bytes: int | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    command: tuple[str, ...] | None = None
    load_group: str = ""
    hang_s: float = 60.0
    network: bool = True

    def order(self, groups: limits.Groups) -> dict[str, Any]:
        """The supervisor's orders."""
        return {
            "lock": str(lock_file(self.lock_dir, self.device.id)),
            "label": f"device {self.device.id}, child started {_now()}",
            "command": list(self.command or (self.interpreter, "-m", CHILD_MODULE)),
            "cwd": str(self.work_dir),
            "processors": [] if self.device.declared else list(self.device.processors),
            "memory_limit_bytes": self.memory_limit_bytes,
            "cgroups": [str(group) for group in groups.all],
            "memory_cgroup": str(groups.memory) if groups.memory else None,
            "offline": None if self.network else str(LEAVE_NETWORK),
        }


class Child:
    """A measuring child. One thread opens, runs and closes it; `cancel` and `is_alive` may be used from any other."""

    def __init__(self, spec: ChildSpec, link: Link, groups: limits.Groups, record: ChildRecord, network: str) -> None:
        """Use `Child.start`."""
        self.spec = spec
        self.pid = record.pid
        self.record = record
        self.on_progress: Callable[[Progress], None] | None = None
        self._link = link
        self._groups = groups
        self.network = network
        self._witness = Witness(Instruments.of(spec.device), record.pid, network)
        self._opened: Opened | None = None
        self._cancelled = threading.Event()

    @classmethod
    def start(cls, spec: ChildSpec) -> Child:
        """A running child that holds the device. Raises DeviceBusy, and OSError when no process can be started."""
        child_id = uuid.uuid4().hex
        extra = spec.environment if spec.network else {**spec.environment, **OFFLINE}
        environment = child_environment(spec.threads, spec.device.gpu_uuid, extra)
        for folder in (spec.lock_dir, spec.work_dir):
            folder.mkdir(parents=True, exist_ok=True)
        groups = limits.prepare(child_id[:16], spec.memory_limit_bytes)
        try:
            link = Link(spec.order(groups), environment, child_id)
            greeting = link.greeting()
            if greeting.get("event") != "started":
                link.wait(0)
                holder = greeting.get("holder")
                if holder is not None:
                    raise DeviceBusy(f"device {spec.device.id} is held by another process ({holder}): wait for its end")
                raise OSError(
                    f"the supervisor of device {spec.device.id} did not start; its messages are on our stderr"
                )
        except BaseException:
            groups.remove()
            raise
        record = ChildRecord(id=child_id, load_group=spec.load_group, pid=greeting["pid"], started_at=_now())
        return cls(spec, link, groups, record, greeting.get("network", "host"))

    def open(self, opening: Open, deadline_s: float) -> ChildRecord | Failure:
        """Load the model; the child's record so far, or why it could not. After anything but a record the child is ended."""
        answer = self._ask(opening, deadline_s)
        if not isinstance(answer, Opened):
            return self._failure(answer, f"loading {opening.cell.model}", deadline_s)
        self._opened = answer
        stages = self._witness.stages
        self.record = self.record.model_copy(
            update={
                "load_s": answer.load_s,
                "baseline": stages.get("baseline"),
                "loaded": stages.get("loaded"),
                "loaded_model": answer.model,
            }
        )
        return self.record

    def run(self, run: Run, *, deadline_s: float) -> Measured | Failure:
        """Measure one cell. After anything but a measurement the child is ended."""
        if self._opened is None:
            raise RuntimeError("open the child before running a cell in it")
        self._witness.begin_cell()
        answer = self._ask(run, deadline_s)
        self._witness.end_window()
        if not isinstance(answer, CellRecord):
            return self._failure(answer, f"batch {run.cell.batch_size} of {run.cell.model}", deadline_s)
        self.record = self.record.model_copy(update={"cells_measured": self.record.cells_measured + 1})
        return self._witness.measured(answer, self._opened, self.record, run.cell.quantization)

    def judge(self, judge: Judge, deadline_s: float) -> Quality:
        """The quality of the loaded weights, kept in the child's record from now on; why there is none, when the child ended.

        Never raises and never spoils what was measured before.
        """
        answer = self._ask(judge, deadline_s, may_hang=True)
        if isinstance(answer, Judged):
            quality = answer.quality
        else:
            failure = self._failure(answer, "measuring quality", deadline_s)
            said = failure.message if isinstance(failure, Infeasible | Fault) else "the job was cancelled"
            quality = Quality(text=judge.plan.text, notes=(f"the process ended while quality was measured: {said}",))
        self.note_quality(quality)
        return quality

    def note_quality(self, quality: Quality) -> None:
        """Let the child's record carry what is known of its weights' quality."""
        model = self.record.loaded_model
        if model is not None:
            noted = model.model_copy(update={"quality": quality})
            self.record = self.record.model_copy(update={"loaded_model": noted})

    def close(self, deadline_s: float) -> ChildRecord:
        """Unload and end the child; its complete record, `released` None when it could not be read. Never raises."""
        if self.is_alive and not self._cancelled.is_set():
            answer = self._ask(Close(), deadline_s)
            if isinstance(answer, Closed):
                self.record = self.record.model_copy(update={"released": self._witness.stages.get("released")})
                self._link.order(op="watch", deadline_s=5.0, hang_s=None)  # it only has to exit
                self._link.wait(5.0 + LAST_WORD_S)
        self.kill()
        return self.record

    def cancel(self) -> None:
        """End the child because its job was cancelled; a running `open` or `run` returns Cancelled. Any thread, any time."""
        self._cancelled.set()
        self._link.order(op="end", why="cancelled")

    def kill(self) -> Ending:
        """End the child now if it has not ended, and leave nothing behind; how it ended."""
        self._witness.end_window()
        self._link.order(op="end", why="cancelled" if self._cancelled.is_set() else "killed")
        ending = self._link.wait(LAST_WORD_S)
        self._groups.remove()  # the supervisor has done so, unless it was killed
        return ending

    @property
    def is_alive(self) -> bool:
        """Whether its supervisor, and so the child, still runs."""
        return self._link.supervisor.poll() is None

    def _ask(self, command: Command, deadline_s: float, *, may_hang: bool = False) -> Answer | Ending | Malformed:
        """Say `command` and serve the child until it answers or ends. `may_hang`: only the deadline ends a silent one."""
        begin = time.monotonic()
        until, pace = begin + deadline_s, Pace(begin)
        self._link.order(op="watch", deadline_s=deadline_s, hang_s=None if may_hang else self.spec.hang_s)
        try:
            self._link.say(command, until)
            while True:
                report = self._link.next(until)
                match report:
                    case Stage():
                        self._witness.stage(report)
                        self._link.say(Acknowledge(), until)
                    case Window():
                        self._witness.window(is_open=report.open)
                    case Progress():
                        pace.note(time.monotonic())
                        if self.on_progress is not None:
                            self.on_progress(report)
                    case Ending():
                        return report.with_progress(pace.continues(min(until, time.monotonic())))
                    case _:
                        self._link.order(op="idle")
                        return report
        except Malformed as error:
            return error

    def _failure(self, answer: Answer | Ending | Malformed, what: str, deadline_s: float) -> Failure:
        """The outcome behind an answer that is not the one hoped for; the child is ended, the next gets a fresh one."""
        warm = self.record.cells_measured > 0
        if isinstance(answer, Ending):
            self.kill()
            limit = self.spec.memory_limit_bytes
            return classify(answer, Doing(what, deadline_s, limit, warm, self.record))
        exit_ = self.kill().exit
        if self._cancelled.is_set():
            return Cancelled(exit=exit_, child=self.record)
        if isinstance(answer, Refused):
            return Infeasible(
                reason=answer.reason, message=answer.message, warm=answer.warm or warm, exit=exit_, child=self.record
            )
        said = answer.message if isinstance(answer, Failed) else f"the child broke the protocol: {answer}"
        return Fault(fault=FaultKind.CRASHED, message=f"{what}: {said}", exit=exit_, child=self.record)


def attest(device: DeviceDeclaration, lock_dir: Path, instruments: Instruments | None = None) -> str | None:
    """Why this device cannot be measured on now; None when its lock is free and nothing foreign is on it."""
    path = lock_file(lock_dir, device.id)
    try:
        lock_dir.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    except OSError as error:
        return f"the lock file {path} cannot be opened: {error.strerror}; give this user the folder"
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(descriptor, 500).decode(errors="replace").strip()
        return f"another process still holds the device ({holder or 'unknown'})"
    finally:
        os.close(descriptor)
    return _foreign(instruments or Instruments.of(device))


def lock_file(lock_dir: Path, device_id: str) -> Path:
    """The file whose lock is the right to use the device. Raises ValueError for an id that is no file name."""
    if "/" in device_id or "\0" in device_id or device_id in ("", ".", ".."):
        raise ValueError(f"device id {device_id!r} cannot name a lock file: use letters, digits, '.', '-' and ':'")
    return lock_dir / f"{device_id}.lock"


def _foreign(instruments: Instruments) -> str | None:
    if instruments.no_gpu:
        return f"the GPU cannot be asked: {instruments.no_gpu}"
    if instruments.gpu is None:
        return None
    try:
        processes = sorted(instruments.gpu.processes())
        used = instruments.gpu.memory_used_bytes()
    except NvmlError as error:
        return f"the GPU cannot be asked: {error}"
    if processes:
        return f"other processes are on the GPU: {', '.join(map(str, processes))}"
    if used > IDLE_GPU_BYTES:
        return f"the GPU's memory is not at its baseline: {format_bytes(used)} used, expected below {format_bytes(IDLE_GPU_BYTES)}"
    return None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
