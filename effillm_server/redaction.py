"""Secrets taken out of text before it is written anywhere: by their shape, and by their value where this process has them."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote, urlsplit

SHAPES = re.compile(
    r"\beff_[0-9A-Za-z]{43}\b"  # our keys
    r"|\bhf_[A-Za-z0-9]{16,}"  # tokens of the model hub
    r"|(?<=://)[^/\s:@\"']*:[^/\s@\"']+(?=@)"  # user:password@ of a URL
    r"|(?i:(?<=bearer )[!-~]{8,})"
    r"|(?<=login\?token=)[\w-]+"
)
NAMES = re.compile(r"TOKEN$|SECRET|PASSW|CREDENTIAL|_KEY$", re.IGNORECASE)
SHORTEST = 8
HIDDEN = "***"


class Redaction:
    """What hides the secrets of an environment, made once: the values of variables whose names say that they are secret."""

    def __init__(self, environment: Mapping[str, str] | None = None, *more: str | None) -> None:
        """`more` are secrets that stand in no variable, such as a key read from a file."""
        source = os.environ if environment is None else environment
        values = {value for name, value in source.items() if NAMES.search(name)} | {value for value in more if value}
        values |= {password for value in source.values() if (password := _password(value))}
        # A secret that holds another one goes first.
        self._values = sorted((value for value in values if len(value) >= SHORTEST), key=len, reverse=True)

    def within(self, value: Any) -> Any:
        """`value` without secrets at any depth, in types that JSON has."""
        if value is None or isinstance(value, bool | int | float):
            return value
        if isinstance(value, Mapping):
            return {str(key): self.within(inner) for key, inner in value.items()}
        if isinstance(value, list | tuple | set | frozenset):
            return [self.within(inner) for inner in value]
        return self(str(value))

    def __call__(self, text: str) -> str:
        """`text` without secrets."""
        for value in self._values:
            text = text.replace(value, HIDDEN)
        return SHAPES.sub(HIDDEN, text)


def _password(value: str) -> str | None:
    """The password inside the address of a database or a proxy."""
    if "://" not in value:
        return None
    try:
        password = urlsplit(value).password
    except ValueError:
        return None
    return None if password is None else unquote(password)
