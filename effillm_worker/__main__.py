"""The measuring child: loads one model, measures the cells of its load group one by one, and dies with its parent."""

from __future__ import annotations

import faulthandler
import os
import resource
import sys
import time
import traceback
import warnings

from effillm_server.contract.quality import Quality
from effillm_worker.engines.base import Engine, Judging, LoadRequest, create
from effillm_worker.measure.channel import Channel, ParentGone, ProtocolError
from effillm_worker.measure.refusal import answer
from effillm_worker.measure.session import measure
from effillm_worker.measure.software import software
from effillm_worker.messages import Close, Closed, Failed, Judge, Judged, Open, Opened, Progress, Refused, Run
from effillm_worker.meters.heap import HeapStages, read, trim

LINES_OF_TRACEBACK = 12


def main() -> int:
    """Serve one parent over the descriptors named in the environment; the exit code."""
    faulthandler.enable()
    # A library's warning is for the log; an inherited -W error must not turn it into a failed cell.
    warnings.resetwarnings()
    for category in (DeprecationWarning, PendingDeprecationWarning, ResourceWarning, FutureWarning):
        warnings.simplefilter("ignore", category)
    try:
        channel = Channel.from_environment(os.environ)
    except ProtocolError as error:
        print(error, file=sys.stderr)
        return 2
    try:
        return serve(channel)
    except ParentGone:
        return 0


def serve(channel: Channel) -> int:
    """Answer one parent from Open to Close; 0 when everything asked was answered, 1 after an error without an answer."""
    cells = 0
    try:
        opening = channel.expect(Open)
        engine, heap = _open(channel, opening)
        while engine is not None:
            match command := channel.receive():
                case Run():
                    cells += _run(channel, engine, command, heap, warm=cells > 0)
                case Judge():
                    channel.send(Judged(quality=_judge(channel, engine, command)))
                case Close():
                    _close(channel, engine, cells)
                    return 0
                case _:
                    raise ProtocolError(f"expected Run, Judge or Close, found {type(command).__name__}")
    except ParentGone:
        raise
    except Exception as error:  # noqa: BLE001  the process's edge: whatever it was goes to the parent, whole
        traceback.print_exc()
        channel.send(Failed(message=_whole(error)))
        return 1
    return 0


def _open(channel: Channel, opening: Open) -> tuple[Engine | None, HeapStages]:
    """The engine with its model loaded, or None after a refusal; and the heap before and after the load."""
    begin, waited = time.monotonic(), 0.0
    if opening.memory_limit_bytes is not None:
        _limit_memory(opening.memory_limit_bytes)
    try:
        engine = create(opening.cell.engine)
        request = _load_request(opening, channel)
        environment = engine.start(request)
        waited += _prepare_judging(engine, opening)
        at_baseline = read()
        waited += environment.once_s + _stand_still(channel, engine, "baseline")
        model = engine.load(request)
        engine.synchronize()
        load_s = time.monotonic() - begin - waited
        heap = HeapStages(at_baseline, read())
        _stand_still(channel, engine, "loaded")
    except Exception as error:
        refusal = answer(error)
        if refusal is None:
            raise
        channel.send(Refused(reason=refusal[0], message=refusal[1]))
        return None, HeapStages()
    described = software(environment)
    channel.send(Opened(load_s=load_s, software=described, model=model, simulated=engine.simulated))
    return engine, heap


def _prepare_judging(engine: Engine, opening: Open) -> float:
    """Seconds spent on what judging needs beside this model; they are no part of its load time."""
    begin = time.monotonic()
    if opening.quality is not None and isinstance(engine, Judging):
        engine.prepare_judging(opening.quality)
    return time.monotonic() - begin


def _judge(channel: Channel, engine: Engine, judge: Judge) -> Quality:
    """The quality of the loaded weights, or a record that says in words why there is none: the cells do not depend on it."""
    if not isinstance(engine, Judging):
        return Quality(text=judge.plan.text, notes=("this engine has no weights whose quality could be measured",))

    def tick(done: int, total: int) -> None:
        channel.tick()
        channel.send(Progress(phase="quality", iteration=done, at_most=total))

    try:
        return engine.judge(judge.plan, judge.time_limit_s, tick)
    except ParentGone:
        raise
    except Exception as error:  # noqa: BLE001  whatever broke here, the cells that are measured stand
        traceback.print_exc()
        said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        return Quality(text=judge.plan.text, notes=(f"measuring quality failed: {said}",))
    finally:
        trim()


def _run(channel: Channel, engine: Engine, run: Run, heap: HeapStages, *, warm: bool) -> int:
    """1 when the cell was measured, 0 when it was refused; either is reported."""
    try:
        record = measure(engine, channel, run, heap=heap)
    except Exception as error:
        refusal = answer(error)
        if refusal is None:
            raise
        channel.send(Refused(reason=refusal[0], message=refusal[1], warm=warm))
        return 0
    channel.send(record)
    return 1


def _close(channel: Channel, engine: Engine, cells: int) -> None:
    engine.unload()
    trim()
    _stand_still(channel, engine, "released")
    channel.send(Closed(cells_measured=cells))


def _stand_still(channel: Channel, engine: Engine, stage: str) -> float:
    """Seconds the parent took to read this stage."""
    begin = time.monotonic()
    channel.stage(stage, engine.allocator())
    return time.monotonic() - begin


def _load_request(opening: Open, channel: Channel) -> LoadRequest:
    # Reported, not counted: the counter would arm the watch for hangs, and a step of a training may take longer than a token.
    def on_progress(phase: str, done: int, at_most: int) -> None:
        channel.send(Progress(phase=phase, iteration=done, at_most=at_most))

    return LoadRequest(
        cell=opening.cell,
        threads=opening.threads,
        device=opening.device,
        cache_dir=opening.cache_dir,
        architecture=opening.architecture,
        model_root=opening.model_root,
        allow_pickled=opening.allow_pickled,
        allow_hub=opening.allow_hub,
        on_progress=on_progress,
    )


def _limit_memory(limit: int) -> None:
    # RLIMIT_DATA counts private writable memory: an allocation beyond it fails in the allocator, which is an answer, before
    # the kernel's killer looks for a victim. Mapped checkpoint files and a GPU's reserved addresses do not count.
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    soft = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _whole(error: BaseException) -> str:
    lines = traceback.format_exception(error)
    return "".join(lines[-LINES_OF_TRACEBACK:]).strip()


if __name__ == "__main__":
    sys.exit(main())
