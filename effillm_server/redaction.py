"""Secrets taken out of text before it is written anywhere: by their shape, and by their value where this process has them."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

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
        # A secret that holds another one goes first.
        self._values = sorted((value for value in values if len(value) >= SHORTEST), key=len, reverse=True)

    def __call__(self, text: str) -> str:
        """`text` without secrets."""
        for value in self._values:
            text = text.replace(value, HIDDEN)
        return SHAPES.sub(HIDDEN, text)
