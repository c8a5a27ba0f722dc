"""Command `doctor`: what this box can watch, how noisy it is, what measuring costs on it."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec

import typer

from effillm_server.errors import Unavailable


def doctor(context: typer.Context) -> None:
    """Look at this box: what can be watched, ceiling, noise floor, probe overhead, what to change. --quick, --measure, --json.

    Becomes `python -m effillm_worker.doctor`, so that signals and the exit code are its own. Its options: --help.
    """
    if find_spec("psutil") is None:
        raise Unavailable("this installation has no worker to look with: pip install 'effillm[worker]'")
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, "-m", "effillm_worker.doctor", *context.args])  # noqa: S606 - no shell
