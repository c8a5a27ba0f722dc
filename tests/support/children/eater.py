"""A measuring child of the engine `simulated` that really takes memory when its model is named so, until somebody says no.

`simulated/eats-asked-N` asks the allocator, which a data limit refuses; `simulated/eats-shared-N` fills shared pages, which
count nowhere but in a control group, so that the kernel must end it.
"""

from __future__ import annotations

import mmap
import runpy
import sys
from pathlib import Path
from typing import Any

MODULE = "effillm_worker"
BLOCK = 16 * 2**20
# A limit that does not hold must not take the machine with it.
AT_MOST = 64


def main() -> None:
    """Run the measuring child as an interpreter would."""
    from effillm_worker.engines import simulated

    usual = simulated.SimulatedEngine._declared_fault

    def declared(engine: Any, batch: Any, tokens: int) -> None:
        usual(engine, batch, tokens)
        if "simulated/eats-" in engine._cell.model:
            eat(shared="shared" in engine._cell.model)

    simulated.SimulatedEngine._declared_fault = declared  # type: ignore[method-assign]
    sys.argv = [MODULE]
    runpy.run_module(MODULE, run_name="__main__", alter_sys=True)


def eat(*, shared: bool) -> None:
    """Take blocks, every page touched, and keep them."""
    held: list[Any] = []
    for _ in range(AT_MOST):
        block: Any = mmap.mmap(-1, BLOCK) if shared else bytearray(BLOCK)
        for page in range(0, BLOCK, 4096):
            block[page] = 1
        held.append(block)
    raise RuntimeError(f"nobody stopped this child at {AT_MOST * BLOCK} bytes")


def interpreter(path: Path) -> Path:
    """An executable at `path` that stands for an interpreter; asked for anything but a child it is the plain one."""
    path.write_text(
        f"#!{sys.executable}\n"
        "import os, sys\n"
        f"if sys.argv[1:3] != ['-m', {MODULE!r}]:\n"
        "    os.execv(sys.executable, [sys.executable, *sys.argv[1:]])\n"
        "from tests.support.children.eater import main\nmain()\n"
    )
    path.chmod(0o755)
    return path
