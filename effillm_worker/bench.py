"""One device's measuring place: the warm child, kept for its load group and replaced for the next."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from effillm_server import runtimes
from effillm_server.catalog import load
from effillm_server.catalog.doors import is_allowed
from effillm_server.contract.fingerprint import DeviceDeclaration
from effillm_server.contract.job import Cell, Lease
from effillm_server.contract.outcome import (
    ChildRecord,
    Fault,
    FaultKind,
    Infeasible,
    InfeasibleReason,
    Measured,
    Outcome,
)  # fmt: skip
from effillm_server.contract.quality import Quality
from effillm_server.contract.sweep import Engine, Isolation
from effillm_server.settings import Settings
from effillm_worker import ceilings, fingerprint
from effillm_worker.isolate import Child, ChildSpec, DeviceBusy
from effillm_worker.log import event
from effillm_worker.messages import READING_S, Judge, Open, Run
from effillm_worker.weights import downloads

DEFAULT_RUNTIME = "default"
# A first load may download the weights, quantize them, train.
LOAD_DEADLINE_S = 3600.0
CLOSE_DEADLINE_S = 60.0
# The child keeps the cell's time limit itself; this is for one that does not.
CELL_MARGIN_S = 120.0
# An ended child's supervisor may need a moment to let go of the device.
LOCK_PATIENCE_S = 10.0
LOCK_RETRY_S = 0.1
MEMORY_SHARE = 0.9
# The child keeps the time limit between windows of text; a task of lm-evaluation-harness does not know of it.
JUDGING_MARGIN_S = 1800.0


@dataclass
class _Warm:
    """A living child and the group it has loaded."""

    child: Child
    group: str
    since: datetime


class Bench:
    """Measures leases one after another, in the warm child where their group allows it.

    `measure` and `put_away` belong to one thread, which also forks the children; `cancel` may come from any other.
    """

    def __init__(
        self,
        device: DeviceDeclaration,
        settings: Settings,
        on_closed: Callable[[ChildRecord], None],
        on_progress: Callable[..., None] | None = None,
    ) -> None:
        self._device = device
        self._settings = settings
        self._on_closed = on_closed
        self._on_progress = on_progress
        self._guard = threading.Lock()
        self._warm: _Warm | None = None
        self._running: tuple[int, int] | None = None
        self._ended: float | None = None
        self._cancelled: set[tuple[int, int]] = set()
        self._quality: tuple[str, Quality] | None = None
        self._complete: set[tuple[str, bool]] = set()

    @property
    def held(self) -> tuple[str, datetime] | None:
        """The group that is loaded now and since when."""
        warm = self._warm
        return None if warm is None else (warm.group, warm.since)

    def measure(self, lease: Lease) -> Outcome:
        """The outcome of one lease; the child stays warm only after a measured cell of a shared group."""
        key = (lease.job_id, lease.fence)
        with self._guard:
            self._running = key
        try:
            outcome = self._measure(lease)
        finally:
            self._ended = time.monotonic()
            with self._guard:
                self._running = None
                self._cancelled.discard(key)
        if not isinstance(outcome, Measured):
            self.discard()
            return outcome
        closed = self.put_away() if lease.isolation is Isolation.CELL else None
        return self._with_ceiling(outcome if closed is None else outcome.model_copy(update={"child": closed}))

    def cancel(self, job_id: int, fence: int) -> bool:
        """End this lease if it is the one being measured; whether it was."""
        with self._guard:
            if self._running != (job_id, fence):
                return False
            self._cancelled.add((job_id, fence))
            if self._warm is not None:
                self._warm.child.cancel()
            return True

    def put_away(self) -> ChildRecord | None:
        """Close the warm child in order, so that its memory after unloading is known; its record."""
        warm = self._take_warm()
        if warm is None:
            return None
        record = warm.child.close(CLOSE_DEADLINE_S)
        self._on_closed(record)
        return record

    def discard(self) -> None:
        """End the warm child at once."""
        warm = self._take_warm()
        if warm is not None:
            warm.child.kill()

    def _with_ceiling(self, measured: Measured) -> Measured:
        """The measurement with what its device could do at most at that time: it may be another machine by tomorrow."""
        ceiling = None if measured.simulated else ceilings.kept(self._settings, measured.fingerprint)
        if ceiling is None:
            return measured
        return measured.model_copy(update={"details": measured.details | {"ceiling": ceiling}})

    def _measure(self, lease: Lease) -> Outcome:
        interpreter = self._interpreter(lease)
        if isinstance(interpreter, Infeasible):
            return interpreter
        started = time.monotonic()
        warm = self._child_of(lease, interpreter)
        if not isinstance(warm, _Warm):
            return warm
        facts = load().models.get(lease.cell.model)
        window = None if facts is None else facts.context_window
        now = time.monotonic()
        event(
            "cell.start", job=lease.job_id, fence=lease.fence, device=self._device.id, group=lease.load_group,
            preparation_s=round(now - started, 4), since_last_cell_s=None if self._ended is None else round(now - self._ended, 4),
        )  # fmt: skip
        run = Run(cell=lease.cell, plan=lease.plan, context_window=window)
        outcome = warm.child.run(run, deadline_s=lease.plan.time_limit_s * 1.1 + CELL_MARGIN_S)
        return self._with_quality(lease, warm.child, outcome) if isinstance(outcome, Measured) else outcome

    def _with_quality(self, lease: Lease, child: Child, measured: Measured) -> Measured:
        """The measurement with the quality of its group's weights, found behind the group's first cell and never again."""
        if lease.quality is None:
            return measured
        if self._quality is not None and self._is_judged(lease.load_group):
            child.note_quality(self._quality[1])
        else:
            limit_s = lease.plan.time_limit_s
            judge = Judge(plan=lease.quality, time_limit_s=limit_s)
            quality = child.judge(
                judge, deadline_s=limit_s * 1.1 + (JUDGING_MARGIN_S if judge.plan.tasks else CELL_MARGIN_S)
            )
            self._quality = (lease.load_group, quality)
            event(
                "quality.judged",
                job=lease.job_id,
                group=lease.load_group,
                notes=list(quality.notes),
                seconds=quality.seconds,
            )
        return measured.model_copy(update={"child": child.record})

    def _child_of(self, lease: Lease, interpreter: str) -> _Warm | Outcome:
        """The warm child of the lease's group, or a fresh one with the model loaded, or why there is none."""
        warm = self._warm
        if warm is not None and warm.group == lease.load_group and not lease.fresh_child and warm.child.is_alive:
            return warm
        self.put_away()
        child = self._start(lease, interpreter)
        if not isinstance(child, Child):
            return child
        child.on_progress = self._on_progress
        warm = _Warm(child, lease.load_group, datetime.now(UTC))
        with self._guard:
            self._warm = warm
            if (lease.job_id, lease.fence) in self._cancelled:
                child.cancel()
        opening = self._opening(lease)
        opened = child.open(opening, LOAD_DEADLINE_S + (READING_S if opening.quality is not None else 0.0))
        return warm if isinstance(opened, ChildRecord) else opened

    def _start(self, lease: Lease, interpreter: str) -> Child | Fault:
        give_up = time.monotonic() + LOCK_PATIENCE_S
        while True:
            try:
                return Child.start(self._spec(lease, interpreter))
            except DeviceBusy as busy:
                if time.monotonic() >= give_up:
                    return Fault(fault=FaultKind.LOST, message=f"another process holds the device: {busy}")
            time.sleep(LOCK_RETRY_S)

    def _spec(self, lease: Lease, interpreter: str) -> ChildSpec:
        return ChildSpec(
            device=self._device,
            interpreter=interpreter,
            lock_dir=self._settings.lock_dir,
            work_dir=self._settings.data_dir / "work" / self._device.id,
            threads=fingerprint.threads(self._device.processors),
            memory_limit_bytes=int(fingerprint.memory_bytes() * MEMORY_SHARE),
            load_group=lease.load_group,
            environment=self._hub_token(lease.cell),
            network=self._downloads(lease.cell),
        )

    def _downloads(self, cell: Cell) -> bool:
        """Whether this cell's child has to ask the model hub for files; nothing else it does needs a network."""
        root = self._settings.model_root
        return downloads(cell, None if root is None else str(root.absolute()))

    def _hub_token(self, cell: Cell) -> dict[str, str]:
        """The operator's token for the model hub, for a child that must download, and nothing for any other."""
        token = os.environ.get("HF_TOKEN")
        return {"HF_TOKEN": token} if token and self._downloads(cell) else {}

    def _opening(self, lease: Lease) -> Open:
        facts = load().models.get(lease.cell.model)
        root = self._settings.model_root
        return Open(
            cell=lease.cell,
            threads=fingerprint.threads(self._device.processors),
            device="cuda" if self._device.gpu_uuid else "cpu",
            architecture=None if facts is None else facts.architecture,
            model_root=None if root is None else str(root.absolute()),
            cache_dir=str((self._settings.data_dir / "cache").absolute()),
            allow_pickled=lease.cell.model in self._settings.allow_pickled,
            allow_hub=is_allowed(lease.cell.model, self._settings.allow_models),
            memory_limit_bytes=int(fingerprint.memory_bytes() * MEMORY_SHARE),
            quality=None if self._is_judged(lease.load_group) else lease.quality,
        )

    def _is_judged(self, group: str) -> bool:
        return self._quality is not None and self._quality[0] == group

    def _interpreter(self, lease: Lease) -> str | Infeasible:
        # Read anew for every child: a runtime may be made while the actor lives.
        runtime, known = lease.cell.runtime, runtimes.known(self._settings)
        if runtime in known:
            if Path(known[runtime]).is_file():
                lacks = self._lacks(known[runtime], with_models=lease.cell.engine is Engine.TRANSFORMERS)
                if lacks is None:
                    return known[runtime]
                missing = f"runtime {runtime!r} on node {self._device.node} {lacks}"
            else:
                missing = f"runtime {runtime!r} names {known[runtime]}, which is not on this node"
        elif runtime == DEFAULT_RUNTIME:
            return sys.executable
        else:
            there = ", ".join(sorted({DEFAULT_RUNTIME, *known}))
            missing = f"no runtime {runtime!r} on node {self._device.node}; there are: {there} (EFFILLM_RUNTIMES)"
        return Infeasible(reason=InfeasibleReason.UNSUPPORTED, message=missing)

    def _lacks(self, interpreter: str, *, with_models: bool) -> str | None:
        """What a runtime lacks; one that once had everything is not asked again."""
        key = (interpreter, with_models)
        if key in self._complete:
            return None
        lacks = runtimes.lacking(interpreter, with_models=with_models)
        if lacks is None:
            self._complete.add(key)
        return lacks

    def _take_warm(self) -> _Warm | None:
        with self._guard:
            warm, self._warm = self._warm, None
        return warm
