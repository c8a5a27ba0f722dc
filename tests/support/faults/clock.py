"""Processes whose wall clock is off: a preloaded library, built where a C compiler is at hand.

Ray's own processes cannot be treated so: they wait for moments of the wall clock, which the kernel knows better.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_name("clock.c")


def is_possible() -> bool:
    return shutil.which("cc") is not None


def build(folder: Path) -> Path:
    """The library, for LD_PRELOAD; its variable CLOCK_OFF_S says by how much."""
    library = folder / "clock.so"
    if not library.exists():
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", str(library), str(SOURCE), "-ldl"], check=True)
    return library


def environment(library: Path, seconds: int) -> dict[str, str]:
    return {"LD_PRELOAD": str(library), "CLOCK_OFF_S": str(seconds)}
