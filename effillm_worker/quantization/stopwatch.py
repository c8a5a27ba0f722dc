"""Time spent inside one function of a library: quantization that happens in the middle of loading."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass
class Spent:
    """Seconds so far, all threads together."""

    seconds: float = 0.0


@contextmanager
def timed(owner: Any, name: str) -> Iterator[Spent]:
    """Adds up the time of every call of `owner.name` inside the context; what a GPU was given is waited for."""
    import torch

    spent, lock = Spent(), threading.Lock()
    original = getattr(owner, name)
    wait: Callable[[], Any] = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None

    def watched(*arguments: Any, **named: Any) -> Any:
        begin = time.monotonic()
        try:
            return original(*arguments, **named)
        finally:
            wait()
            with lock:
                spent.seconds += time.monotonic() - begin

    setattr(owner, name, watched)
    try:
        yield spent
    finally:
        setattr(owner, name, original)
