"""`python -m tests.support.faults.nursery`: a real API process for every port it reads, forked with everything imported.

An API that is killed a hundred times must come up in a fraction of a second; what it takes to start is its imports. Each
line of input is a port, each line of output the process that will listen there. All of them end with this one.
"""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import sys

import effillm_server.api.app
import effillm_server.figures  # noqa: F401
from effillm_server.api.__main__ import main

PR_SET_PDEATHSIG = 1


def serve(port: str) -> int:
    """The API's own main, in a process of its own."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.dup2(2, 1)
    os.environ["EFFILLM_PORT"] = port
    return main()


if __name__ == "__main__":
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that are killed
    gc.freeze()
    for line in sys.stdin:
        if (child := os.fork()) == 0:
            os._exit(serve(line.strip()))
        print(child, flush=True)
