"""What was read of the database a moment ago, by what it was asked for; read again for many at once."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

MOST = 10_000


@dataclass
class _Entry(Generic[V]):
    value: V
    read_s: float
    asked_s: float


class Remembered(Generic[K, V]):
    """Values by key, each for `for_s` seconds after it was read. Only what exists is remembered.

    `read` is asked for several keys at once and answers for those that exist: whoever must be looked up takes along all that
    were asked for lately and will soon be too old, so that many who ask again and again cost one statement in a while.
    """

    def __init__(
        self, read: Callable[[Sequence[K]], Mapping[K, V]], for_s: float, now: Callable[[], float], most: int = MOST
    ) -> None:
        self._read, self._for_s, self._now, self._most = read, for_s, now, most
        self._lock = threading.Lock()
        self._entries: OrderedDict[K, _Entry[V]] = OrderedDict()
        self._clearings = 0

    def get(self, key: K) -> V | None:
        """The value as it stood `for_s` seconds ago at most, None when there is none."""
        now = self._now()
        with self._lock:
            entry = self._entries.get(key)
            if entry is not None:
                entry.asked_s = now
                if now - entry.read_s < self._for_s:
                    return entry.value
            clearings = self._clearings
            along = [other for other, kept in self._entries.items() if other != key and self._is_due(kept, now)]
        found = self._read([key, *along])
        with self._lock:
            if clearings != self._clearings:
                # Read before something was revoked, perhaps: good for this answer, which was asked for before, and for no other.
                return found.get(key)
            for one in (key, *along):
                before = self._entries.pop(one, None)
                if one in found:
                    asked_s = now if before is None else before.asked_s
                    self._entries[one] = _Entry(found[one], now, asked_s)
            while len(self._entries) > self._most:
                self._entries.popitem(last=False)
        return found.get(key)

    def is_fresh(self, key: K, for_s: float = 0.0) -> bool:
        """Whether `get` answers without reading, now and for `for_s` seconds more."""
        with self._lock:
            entry = self._entries.get(key)
        return entry is not None and self._now() - entry.read_s + for_s < self._for_s

    def clear(self) -> None:
        """Read everything anew."""
        with self._lock:
            self._entries.clear()
            self._clearings += 1

    def _is_due(self, entry: _Entry[V], now: float) -> bool:
        return now - entry.read_s >= self._for_s / 2 and now - entry.asked_s < self._for_s
