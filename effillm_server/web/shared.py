"""What many look at in the same second, made once: two hundred who watch a sweep do not make two hundred matrices."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")

KEPT_S = 1.0
MOST_KEPT = 64


@dataclass
class _Place(Generic[T]):
    """One thing that is shared: what was made of it, of which events, when; whoever makes it anew holds the lock."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    made: T | None = None
    position: int = -1
    at_s: float = 0.0


class Shared(Generic[T]):
    """Values by key, each with the id of the last event it surely shows, made anew when it is older than `kept_s`."""

    def __init__(
        self, kept_s: float = KEPT_S, most: int = MOST_KEPT, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._kept_s, self._most, self._now = kept_s, most, now
        self._lock = threading.Lock()
        self._places: OrderedDict[Hashable, _Place[T]] = OrderedDict()

    def get(self, key: Hashable, position: int, make: Callable[[], T]) -> tuple[T, bool]:
        """The value, and whether it may lack events up to `position`; who is told so looks again a little later."""
        with self._lock:
            place = self._places.setdefault(key, _Place())
            self._places.move_to_end(key)
            while len(self._places) > self._most:
                self._places.popitem(last=False)
        with place.lock:
            is_old = self._now() - place.at_s >= self._kept_s
            if place.made is None or (place.position < position and is_old):
                place.at_s = self._now()
                place.made, place.position = make(), position
            return place.made, place.position < position
