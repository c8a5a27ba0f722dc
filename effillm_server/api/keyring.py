"""What this process knows of keys and sessions: looked up in the database, remembered for two seconds."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

import sqlalchemy

from effillm_server import credentials
from effillm_server.api.remembered import Remembered
from effillm_server.ledger import keys
from effillm_server.records import KeyRecord, SessionRecord
from effillm_server.settings import Settings

# A key revoked through another process opens doors here for so long; the promise is 5 s.
REMEMBERED_S = 2.0
# What is remembered for less than this any more may be forgotten by the time it is asked for.
AT_ONCE_S = 0.2


class Keyring:
    """Keys and sessions by their text. `required`: without one of them nobody is served."""

    def __init__(
        self, engine: sqlalchemy.Engine, settings: Settings, now: Callable[[], float] = time.monotonic
    ) -> None:
        self.required = credentials.is_required(settings)
        self._engine = engine
        self._now = now
        self._keys = Remembered(self._read_keys, REMEMBERED_S, now)
        self._sessions = Remembered(self._read_sessions, REMEMBERED_S, now)
        self._valid = Remembered(self._read_valid, REMEMBERED_S, now)
        self._lock = threading.Lock()
        self._noted: dict[int, float] = {}  # when which key's use was last noted

    def key(self, text: str) -> KeyRecord | None:
        """The valid key of this text."""
        if credentials.KEY_TEXT.fullmatch(text) is None:
            return None
        return self._keys.get(credentials.digest(text))

    def session(self, token: str) -> SessionRecord | None:
        """The open session of this token. One without a key counts only where no keys are asked for."""
        if credentials.KEY_TEXT.fullmatch(token) is None:
            return None
        found = self._sessions.get(credentials.digest(token, "session"))
        return None if found is not None and found.key is None and self.required else found

    def is_valid(self, key_id: int) -> bool:
        """Whether the key opens anything still, as it stood two seconds ago at most."""
        return self._valid.get(key_id) is not None

    def was_valid_just_now(self, key_id: int) -> bool:
        """Whether that has been looked up so lately that it need not be again. Waits for nothing."""
        return self._valid.is_fresh(key_id)

    def remembers_key(self, text: str) -> bool:
        """Whether `key`, asked at once, answers without the database."""
        return credentials.KEY_TEXT.fullmatch(text) is None or self._keys.is_fresh(credentials.digest(text), AT_ONCE_S)

    def remembers_session(self, token: str) -> bool:
        """Whether `session`, asked at once, answers without the database."""
        return credentials.KEY_TEXT.fullmatch(token) is None or self._sessions.is_fresh(
            credentials.digest(token, "session"), AT_ONCE_S
        )

    def forget(self) -> None:
        """Look everything up anew: something was revoked or closed."""
        for remembered in (self._keys, self._sessions, self._valid):
            remembered.clear()

    def _read_keys(self, digests: Sequence[bytes]) -> Mapping[bytes, KeyRecord]:
        # Found by their SHA-256: how long that takes tells nothing of a secret.
        with self._engine.connect() as connection:
            found = keys.keys_by_hash(connection, digests)
        self._used(found.values())
        return found

    def _read_sessions(self, digests: Sequence[bytes]) -> Mapping[bytes, SessionRecord]:
        with self._engine.connect() as connection:
            found = keys.sessions(connection, digests)
        self._used(session.key for session in found.values() if session.key is not None)
        return found

    def _read_valid(self, key_ids: Sequence[int]) -> Mapping[int, KeyRecord]:
        with self._engine.connect() as connection:
            return keys.valid_keys(connection, key_ids)

    def _used(self, used: Iterable[KeyRecord]) -> None:
        """Have it noted that the keys are in use, as often as the ledger can tell the difference."""
        now = self._now()
        with self._lock:
            due = [
                key.id for key in used
                if now - self._noted.get(key.id, float("-inf")) >= keys.LAST_USE_RESOLUTION_S
            ]  # fmt: skip
            self._noted |= dict.fromkeys(due, now)
        if due:
            with self._engine.begin() as connection:
                keys.used(connection, due)
