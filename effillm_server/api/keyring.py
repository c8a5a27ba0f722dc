"""What this process knows of keys and sessions: looked up in the database, remembered for two seconds."""

from __future__ import annotations

import hmac
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import TypeVar

import sqlalchemy

from effillm_server import credentials
from effillm_server.ledger import keys
from effillm_server.records import KeyRecord, SessionRecord
from effillm_server.settings import Settings

# A key revoked through another process opens doors here for so long; the promise is 5 s.
REMEMBERED_S = 2.0
# What is remembered for less than this any more may be forgotten by the time it is asked for.
AT_ONCE_S = 0.2
MOST_REMEMBERED = 10_000

T = TypeVar("T")


class Keyring:
    """Keys and sessions by their text. `required`: without one of them nobody is served."""

    def __init__(
        self, engine: sqlalchemy.Engine, settings: Settings, now: Callable[[], float] = time.monotonic
    ) -> None:
        self.required = credentials.is_required(settings)
        self._engine = engine
        self._now = now
        self._lock = threading.Lock()
        self._known: OrderedDict[bytes, tuple[float, KeyRecord | SessionRecord]] = OrderedDict()
        self._noted: dict[int, float] = {}  # when which key's use was last noted

    def key(self, text: str) -> KeyRecord | None:
        """The valid key of this text."""
        if credentials.KEY_TEXT.fullmatch(text) is None:
            return None
        return self._remembered(credentials.digest(text), self._read_key)

    def session(self, token: str) -> SessionRecord | None:
        """The open session of this token. One without a key counts only where no keys are asked for."""
        if credentials.KEY_TEXT.fullmatch(token) is None:
            return None
        found = self._remembered(credentials.digest(token, "session"), self._read_session)
        return None if found is not None and found.key is None and self.required else found

    def is_valid(self, key_id: int) -> bool:
        """Whether the key opens anything still, as it stood two seconds ago at most."""
        return self._remembered(key_id.to_bytes(8), self._read_by_id) is not None

    def was_valid_just_now(self, key_id: int) -> bool:
        """Whether that has been looked up so lately that it need not be again. Waits for nothing."""
        return self._is_fresh(key_id.to_bytes(8))

    def remembers_key(self, text: str) -> bool:
        """Whether `key`, asked at once, answers without the database."""
        return self._is_at_hand(text, "key")

    def remembers_session(self, token: str) -> bool:
        """Whether `session`, asked at once, answers without the database."""
        return self._is_at_hand(token, "session")

    def _is_at_hand(self, text: str, kind: str) -> bool:
        if credentials.KEY_TEXT.fullmatch(text) is None:
            return True
        return self._is_fresh(credentials.digest(text, kind), AT_ONCE_S)

    def forget(self) -> None:
        """Look everything up anew: something was revoked or closed."""
        with self._lock:
            self._known.clear()

    def _is_fresh(self, digest: bytes, for_s: float = 0.0) -> bool:
        with self._lock:
            kept = self._known.get(digest)
        return kept is not None and self._now() - kept[0] + for_s < REMEMBERED_S

    def _remembered(self, digest: bytes, read: Callable[[bytes], T | None]) -> T | None:
        """What was read under this digest a moment ago, else what is read now. Only what exists is remembered."""
        with self._lock:
            kept = self._known.get(digest)
        if kept is not None and self._now() - kept[0] < REMEMBERED_S:
            return kept[1]  # type: ignore[return-value]
        at = self._now()
        found = read(digest)
        with self._lock:
            self._known.pop(digest, None)
            if found is not None:
                self._known[digest] = (at, found)  # type: ignore[assignment]
                while len(self._known) > MOST_REMEMBERED:
                    self._known.popitem(last=False)
        return found

    def _read_key(self, digest: bytes) -> KeyRecord | None:
        with self._engine.connect() as connection:
            found = keys.key_by_hash(connection, digest)
        if found is None or not hmac.compare_digest(found[1], digest):
            return None
        self._used(found[0])
        return found[0]

    def _read_session(self, digest: bytes) -> SessionRecord | None:
        with self._engine.connect() as connection:
            found = keys.session(connection, digest)
        if found is not None and found.key is not None:
            self._used(found.key)
        return found

    def _read_by_id(self, digest: bytes) -> KeyRecord | None:
        with self._engine.connect() as connection:
            return keys.valid_key(connection, int.from_bytes(digest))

    def _used(self, key: KeyRecord) -> None:
        """Have it noted that the key is in use, as often as the ledger can tell the difference."""
        now = self._now()
        with self._lock:
            if now - self._noted.get(key.id, float("-inf")) < keys.LAST_USE_RESOLUTION_S:
                return
            self._noted[key.id] = now
        with self._engine.begin() as connection:
            keys.used(connection, key.id)
