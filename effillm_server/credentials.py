"""Keys as text: how one is made, told from other text, shortened, hashed; when they are asked for; the first admin key."""

from __future__ import annotations

import hashlib
import ipaddress
import os
import re
import secrets
import tempfile
from contextlib import suppress
from pathlib import Path

from effillm_server.errors import BadInput
from effillm_server.settings import Settings

KEY_BYTES = 32
LEAD = "eff_"
PREFIX_LENGTH = 12
# What an operator may bring along instead: `openssl rand -hex 32` and the like.
KEY_TEXT = re.compile(r"[!-~]{32,200}")
_DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_LENGTH = 43  # 62^43 > 2^256


def is_loopback(host: str) -> bool:
    """Whether `host`, a name or an address, can only be this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def is_required(settings: Settings) -> bool:
    """Whether nobody is served without a key: always beyond loopback."""
    return settings.require_keys or not is_loopback(settings.host)


def without_admin(settings: Settings, *, is_revoked: bool = False) -> str:
    """What is wrong when keys are asked for and no admin has one, and what to do."""
    is_open = not is_loopback(settings.host)
    why = f"EFFILLM_HOST={settings.host} is not this machine alone" if is_open else "EFFILLM_REQUIRE_KEYS is set"
    if is_revoked:
        return f"{why}, and the admin key that was given is revoked or expired: set EFFILLM_ADMIN_KEY to a new one"
    return (
        f"{why}, so keys are asked for, and nobody has an admin key: set EFFILLM_ADMIN_KEY (`openssl rand -hex 32` makes "
        "one), or EFFILLM_ADMIN_KEY_FILE to a file that is to have one"
    )


def new_key() -> str:
    """A key of 256 random bits as `eff_` and 43 letters and digits, which a double click selects as one word."""
    number = int.from_bytes(secrets.token_bytes(KEY_BYTES))
    letters = []
    for _ in range(_LENGTH):
        number, digit = divmod(number, len(_DIGITS))
        letters.append(_DIGITS[digit])
    return LEAD + "".join(letters)


def prefix(key: str) -> str:
    """The first characters of a key, by which its owner tells it from others."""
    return key[:PREFIX_LENGTH]


def digest(secret: str, kind: str = "key") -> bytes:
    """What is stored instead of a secret: its SHA-256. `kind` keeps what is a link from being taken for a session.

    A slow hash would protect passwords; it adds nothing to 256 random bits.
    """
    text = secret if kind == "key" else f"{kind}:{secret}"
    return hashlib.sha256(text.encode()).digest()


def admin_key(settings: Settings) -> str | None:
    """The operator's admin key: EFFILLM_ADMIN_KEY, else the content of EFFILLM_ADMIN_KEY_FILE, which is made if it is not there.

    None when neither is set. Raises BadInput when it cannot be had or is too short to be one.
    """
    if settings.admin_key is not None:
        return _checked(settings.admin_key, "EFFILLM_ADMIN_KEY")
    if settings.admin_key_file is None:
        return None
    return _checked(_from_file(settings.admin_key_file), f"the key in EFFILLM_ADMIN_KEY_FILE={settings.admin_key_file}")


def _from_file(path: Path) -> str:
    try:
        if not path.exists():
            _make(path)
        return path.read_text(encoding="ascii").strip()
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no ASCII text"
        raise BadInput(
            f"EFFILLM_ADMIN_KEY_FILE={path} cannot be used ({why}): name a file with one key in it, or one in a folder that "
            "this process may write to",
            field="EFFILLM_ADMIN_KEY_FILE",
        ) from None


def _make(path: Path) -> None:
    """Writes a new key into `path`, readable by its owner only; another process that does the same may win."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor, part = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # mode 0600
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(new_key() + "\n")
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):
            os.link(part, path)
    finally:
        Path(part).unlink()


def _checked(key: str, source: str) -> str:
    if KEY_TEXT.fullmatch(key) is None:
        raise BadInput(
            f"{source} is no key: expected 32 to 200 printable characters without spaces, found {len(key)}; "
            "`openssl rand -hex 32` makes one",
            field="EFFILLM_ADMIN_KEY",
        )
    return key
