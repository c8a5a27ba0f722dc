"""Stand-in measuring children for tests: real processes that speak the real protocol and then behave as named.

`python -m tests.support.children.play BEHAVIOUR` answers Open properly unless the behaviour says otherwise, and plays its
part when it is told to run.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from effillm_server.contract.fingerprint import Software
from effillm_server.contract.outcome import (
    CellMemory,
    InfeasibleReason,
    LoadedModel,
    MemoryReading,
    Phase,
    Sample,
    StopReason,
)
from effillm_server.contract.quality import Losses, Quality
from effillm_worker.messages import (
    COMMAND,
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
    Report,
    Run,
    Stage,
    Window,
)

MIB = 2**20
HELD: list[bytearray] = []


class Talk:
    """This child's end of the pipes."""

    def __init__(self) -> None:
        self.commands = os.fdopen(int(os.environ["EFFILLM_COMMAND_FD"]), "rb")
        self.reports = os.fdopen(int(os.environ["EFFILLM_REPORT_FD"]), "wb")
        self.counter = int(os.environ["EFFILLM_PROGRESS_FD"])
        self.tokens = 0

    def hear(self) -> Command:
        line = self.commands.readline()
        if not line:
            sys.exit(0)
        return COMMAND.validate_json(line)

    def say(self, report: Report) -> None:
        self.reports.write(report.model_dump_json().encode() + b"\n")
        self.reports.flush()

    def stage(self, name: str, **allocator: int) -> None:
        self.say(Stage(stage=name, allocator=allocator))
        self.hear()

    def tick(self) -> None:
        self.tokens += 1
        os.pwrite(self.counter, self.tokens.to_bytes(8, "little"), 0)


def allocate(size: int) -> None:
    """Hold `size` more bytes, every page touched."""
    block = bytearray(size)
    block[::4096] = b"x" * len(block[::4096])
    HELD.append(block)


def record(memory: CellMemory = CellMemory()) -> CellRecord:
    samples = tuple(
        Sample(iteration=k, phase=Phase.MEASURED, prompt_tokens=8, timestamps_ns=(0, 10 + k, 20 + k)) for k in range(5)
    )
    return CellRecord(samples=samples, stop_reason=StopReason.CONVERGED, memory=memory)


def measure(talk: Talk, window_s: float = 0.3) -> None:
    """A cell measured as it should be; prefill needs 32 MiB that are given back, decode 8 MiB."""
    talk.say(Window(open=True))
    until = time.monotonic() + window_s
    while time.monotonic() < until:
        talk.tick()
    talk.say(Progress(phase="measured", iteration=0, at_most=5))
    talk.say(Window(open=False))
    for phase, size in (("prefill", 32 * MIB), ("decode", 8 * MIB)):
        talk.stage(f"{phase}_begin")
        allocate(size)
        if phase == "decode":
            for _ in range(3):
                talk.stage("steady")
        HELD.pop()
        talk.stage(f"{phase}_end")
    talk.say(record())


def measure_long(talk: Talk) -> None:
    measure(talk, window_s=2.5)


def sleep(talk: Talk) -> NoReturn:
    """Says it has begun, then nothing more."""
    talk.say(Progress(phase="warmup", iteration=0, at_most=3))
    while True:
        time.sleep(600)


def hang(talk: Talk) -> NoReturn:
    """Three tokens, then nothing more."""
    for _ in range(3):
        talk.tick()
        time.sleep(0.1)
    while True:
        time.sleep(600)


def silent(talk: Talk) -> NoReturn:
    """No token, ever."""
    while True:
        time.sleep(600)


def stubborn(talk: Talk) -> NoReturn:
    """Does not end when asked to."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    silent(talk)


def slow(talk: Talk) -> NoReturn:
    """Tokens forever."""
    while True:
        talk.tick()
        time.sleep(0.02)


def flood(talk: Talk) -> None:
    """Tens of megabytes of junk on stdout and stderr, some of it secret, then a proper measurement."""
    junk = b"x" * 1000 + b"\n"
    for _ in range(300):
        os.write(1, junk * 60)
        os.write(2, b'{"kind": "cell"}\n\x00\xff\n')
    measure(talk)
    print("token is", os.environ.get("HF_TOKEN"), "at postgresql://lab:pw12345@db/lab", flush=True)


def crash(talk: Talk) -> NoReturn:
    print("about to crash", flush=True)
    os.kill(os.getpid(), signal.SIGSEGV)
    raise SystemExit(1)


def killed(talk: Talk) -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise SystemExit(1)


def leave(talk: Talk) -> NoReturn:
    raise SystemExit(3)


def fail(talk: Talk) -> NoReturn:
    talk.say(Failed(message="ValueError: no such layer"))
    raise SystemExit(1)


def tell_on_stderr(talk: Talk) -> NoReturn:
    """Quotes its token in its log and ends."""
    print("could not download with", os.environ["HF_TOKEN"], file=sys.stderr, flush=True)
    raise SystemExit(1)


def tell_by_report(talk: Talk) -> NoReturn:
    """Quotes its token in what it reports and ends."""
    talk.say(Failed(message=f"401 Unauthorized with {os.environ['HF_TOKEN']}"))
    raise SystemExit(1)


def refuse(talk: Talk) -> None:
    talk.say(Refused(reason=InfeasibleReason.OUT_OF_DEVICE_MEMORY, message="tried to allocate 9 GB", warm=True))


def gibberish(talk: Talk) -> None:
    talk.reports.write(b'{"kind": "cell", "samples": "many"}\n')
    talk.reports.flush()


def eat(talk: Talk) -> NoReturn:
    """Allocate until somebody says no."""
    while True:
        allocate(16 * MIB)
        talk.tick()


def limited(talk: Talk) -> None:
    """Refuses with the data limit it finds itself under."""
    limit, _ = resource.getrlimit(resource.RLIMIT_DATA)
    talk.say(Refused(reason=InfeasibleReason.OUT_OF_HOST_MEMORY, message=f"limit {limit}"))


def family(talk: Talk) -> NoReturn:
    """Grandchildren that leave session, group and parent behind, one of them deaf to SIGTERM; prints their ids."""
    code = "import os, signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nif os.fork(): os._exit(0)\n"
    code += "os.setsid()\nprint(os.getpid(), flush=True)\ntime.sleep(600)"
    started = [subprocess.Popen([sys.executable, "-I", "-c", code], stdout=subprocess.PIPE) for _ in range(2)]
    pids = [process.stdout.readline().strip().decode() for process in started if process.stdout is not None]
    Path("family.tmp").write_text("\n".join(pids))
    Path("family.tmp").rename("family")
    sleep(talk)


def rabbits(talk: Talk) -> NoReturn:
    """Processes that fork a successor and end, over and over: nothing that is seen lives long enough to be killed."""
    for _ in range(8):
        if os.fork() == 0:
            os.setsid()
            while True:
                with contextlib.suppress(OSError):
                    if os.fork():
                        os._exit(0)
    Path("rabbits").write_text("running")
    silent(talk)


def environment(talk: Talk) -> None:
    """Refuses with everything it was given."""
    affinity = sorted(os.sched_getaffinity(0))
    found = [f"{name}={value}" for name, value in sorted(os.environ.items())]
    open_files = sorted(int(entry.name) for entry in Path("/proc/self/fd").iterdir())
    message = "\n".join(
        [*found, f"affinity={affinity}", f"open={open_files}", f"oom={Path('/proc/self/oom_score_adj').read_text()}"]
    )
    talk.say(Refused(reason=InfeasibleReason.UNSUPPORTED, message=message))


def connect(talk: Talk) -> None:
    """Refuses with what came of connecting to a port of the box's loopback, and to one of its own."""
    own = socket.create_server(("127.0.0.1", 0))
    said = [
        _connected(int(os.environ["BOX_PORT"])),
        _connected(own.getsockname()[1]),
        os.environ.get("HF_HUB_OFFLINE", ""),
    ]
    talk.say(Refused(reason=InfeasibleReason.UNSUPPORTED, message="|".join(said)))


def _connected(port: int) -> str:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=30).close()
    except OSError as error:
        return errno.errorcode[error.errno] if error.errno else str(error)
    return "connected"


def declare(talk: Talk) -> None:
    """A simulated engine's cell: no window, no stage, declared memory."""
    talk.say(record(CellMemory(peak_decode=MemoryReading(vram_bytes=7 * MIB, vram_source="declared"))))


def judge(talk: Talk) -> None:
    """Two windows of text, the first of which takes longer than a hang may."""
    for window in (1, 2):
        time.sleep(0.4)
        talk.tick()
        talk.say(Progress(phase="quality", iteration=window, at_most=2))
    talk.say(Judged(quality=Quality(text="shipped", losses=Losses(nll=(2.0, 2.5), tokens=(100, 100)), seconds=0.8)))


def prepare(talk: Talk) -> None:
    """Three steps before the model is loaded, each of which takes longer than a hang may."""
    for step in (1, 2, 3):
        time.sleep(0.4)
        talk.say(Progress(phase="quantizing", iteration=step, at_most=3))
    load(talk, simulated=False)


def prepare_for_ever(talk: Talk) -> NoReturn:
    """Step after step."""
    step = 0
    while True:
        step += 1
        talk.say(Progress(phase="quantizing", iteration=step, at_most=0))
        time.sleep(0.05)


IN_JUDGE: dict[str, Callable[[Talk], None]] = {
    "crash_in_judge": crash, "hang_in_judge": silent, "gibberish_in_judge": gibberish,
}  # fmt: skip
IN_OPEN: dict[str, Callable[[Talk], None]] = {
    "hang_in_open": silent, "crash_in_open": crash, "refuse_in_open": refuse, "tell_on_stderr": tell_on_stderr,
    "tell_by_report": tell_by_report, "prepare_in_open": prepare, "prepare_for_ever_in_open": prepare_for_ever,
}  # fmt: skip
IN_CLOSE: dict[str, Callable[[Talk], None]] = {"hang_in_close": silent}
IN_RUN: dict[str, Callable[[Talk], None]] = {
    function.__name__: function
    for function in (
        measure, measure_long, sleep, hang, silent, stubborn, slow, flood, crash, killed, leave, fail, refuse, gibberish, eat,
        limited, family, rabbits, environment, declare, connect,
    )
}  # fmt: skip


def main(behaviour: str) -> int:
    """Serve the parent; play the part where it belongs."""
    talk = Talk()
    while True:
        command = talk.hear()
        if isinstance(command, Open):
            IN_OPEN.get(behaviour, lambda _: load(talk, simulated=behaviour == "declare"))(talk)
        elif isinstance(command, Run):
            IN_RUN.get(behaviour, measure)(talk)
        elif isinstance(command, Judge):
            IN_JUDGE.get(behaviour, judge)(talk)
        elif isinstance(command, Close):
            IN_CLOSE.get(behaviour, unload)(talk)
            return 0


def load(talk: Talk, *, simulated: bool) -> None:
    """A model of 64 MiB."""
    talk.stage("baseline")
    allocate(64 * MIB)
    talk.stage("loaded")
    model = LoadedModel(parameters=16 * MIB, weight_bytes=64 * MIB, bits_per_weight=32.0, dtype="float32")
    software = Software(python="3", kernel="test", code_version="test")
    talk.say(Opened(load_s=0.1, software=software, model=model, simulated=simulated))


def unload(talk: Talk) -> None:
    HELD.clear()
    talk.stage("released")
    talk.say(Closed(cells_measured=1))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
