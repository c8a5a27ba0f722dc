"""The Ray node that a fleet needs on its own box, as a child of the fleet: they begin together and end together."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence

from effillm_server.errors import BadInput, Unavailable
from effillm_worker.log import event

READY_WITHIN_S = 120.0
STOP_WITHIN_S = 30.0
FOLLOW_WITHIN_S = 5.0
BAD_INPUT_EXIT = 2


class Companion:
    """`python -m effillm_worker.node`, unless another program is named, with the given options."""

    def __init__(
        self, arguments: Sequence[str], program: Sequence[str] = (sys.executable, "-m", "effillm_worker.node")
    ) -> None:
        self._command = (*program, *arguments)
        self._is_ready = False
        self._has_answered = threading.Event()
        self._is_stopping = False
        self._node: subprocess.Popen[str] | None = None
        self._listener: threading.Thread | None = None

    def start(self) -> None:
        """Returns when the node counts among the living. Raises BadInput or Unavailable when it does not come to that."""
        node = subprocess.Popen(
            self._command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._node = node
        self._listener = threading.Thread(target=self._listen, args=(node,), name="companion", daemon=True)
        self._listener.start()
        if self._has_answered.wait(READY_WITHIN_S):
            if self._is_ready and node.poll() is None:
                return
            # It has closed its output and is on its way out: its exit code, not that of a signal, says why.
            with contextlib.suppress(subprocess.TimeoutExpired):
                node.wait(FOLLOW_WITHIN_S)
        self.stop()
        # What was wrong it said on our stderr itself.
        if node.returncode == BAD_INPUT_EXIT:
            raise BadInput("the fleet's own Ray node cannot be started like this: its reason stands above")
        raise Unavailable(
            f"the fleet's own Ray node was not ready within {READY_WITHIN_S:g} s: its reason stands above"
        )

    def watch(self, ended: Callable[[], None]) -> None:
        """Call `ended`, in a thread, should the node end before `stop`; this process ends soon after, whatever it is doing."""

        def wait() -> None:
            if self._node is not None:
                code = self._node.wait()
                if not self._is_stopping:
                    event("companion.ended", exit_code=code)
                    ended()
                    # Calls into Ray hang for minutes once the head is gone, and nothing here outlives the node.
                    end = threading.Timer(FOLLOW_WITHIN_S, os._exit, (1,))
                    end.daemon = True
                    end.start()

        threading.Thread(target=wait, name="companion-watch", daemon=True).start()

    @property
    def has_ended(self) -> bool:
        """Whether there is no node any more."""
        return self._node is None or self._node.poll() is not None

    def stop(self) -> None:
        """End the node and wait for it."""
        self._is_stopping = True
        if self._node is None:
            return
        with contextlib.suppress(ProcessLookupError):
            self._node.send_signal(signal.SIGTERM)
        try:
            self._node.wait(STOP_WITHIN_S)
        except subprocess.TimeoutExpired:
            self._node.kill()
            self._node.wait()
        if self._listener is not None:
            self._listener.join(STOP_WITHIN_S)

    def _listen(self, node: subprocess.Popen[str]) -> None:
        """Pass on what the node says and look for its being ready; its end counts as an answer too."""
        if node.stdout is None:
            return
        with node.stdout as lines:
            for line in lines:
                sys.stdout.write(line)
                sys.stdout.flush()
                with contextlib.suppress(ValueError, TypeError, KeyError):
                    if json.loads(line)["event"] == "node.ready":
                        self._is_ready = True
                        self._has_answered.set()
        self._has_answered.set()
