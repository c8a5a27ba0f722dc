"""Texts by name: the shipped ones, or a file below the model root."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from effillm_server.contract.quality import SHIPPED
from effillm_worker.engines.base import Unsupported

MAX_TEXT_BYTES = 16 * 2**20
# No tokenizer spends more bytes on a token of ordinary text: what lies beyond is not even looked at.
BYTES_PER_TOKEN = 32

# Token ids of each text by the model's own tokenizer.
Encode = Callable[[Sequence[str]], list[list[int]]]


@dataclass(frozen=True)
class Text:
    """A text with the name it was asked for by and the digest of its content."""

    name: str
    content: str

    @property
    def digest(self) -> str:
        """SHA-256 of the text, first 16 hex digits."""
        return hashlib.sha256(self.content.encode()).hexdigest()[:16]


def evaluation(name: str, model_root: str | None) -> Text:
    """The text to measure quality on. Raises Unsupported, in words."""
    if name != SHIPPED:
        return _file(name, model_root)
    from effillm_server.catalog import texts

    return Text(SHIPPED, texts.evaluation())


def calibration(name: str | None, model_root: str | None) -> Text:
    """The text methods look at while they quantize, never the one quality is measured on. Raises Unsupported, in words."""
    if name is not None and name != SHIPPED:
        return _file(name, model_root)
    from effillm_server.catalog import texts

    return Text(SHIPPED, texts.calibration())


def encode(by: Encode, text: Text, most: int) -> list[int]:
    """Up to `most` token ids from the beginning of the text, special tokens as the tokenizer itself adds them."""
    return by([text.content[: most * BYTES_PER_TOKEN]])[0][:most]


def _file(name: str, model_root: str | None) -> Text:
    if model_root is None:
        raise Unsupported(f"the text {name!r} is a file below the model root, and none is set: set EFFILLM_MODEL_ROOT")
    root = Path(model_root).resolve()
    path = (root / name).resolve()
    if not path.is_relative_to(root):
        raise Unsupported(f"the text {name!r} lies outside the model root: copy the file itself there")
    if not path.is_file():
        raise Unsupported(f"there is no text {name!r} below the model root of this box: copy the file there")
    size = path.stat().st_size
    if size > MAX_TEXT_BYTES:
        raise Unsupported(f"the text {name!r} has {size:,} bytes, at most {MAX_TEXT_BYTES:,} are taken: cut it")
    try:
        content = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise Unsupported(f"the text {name!r} is not UTF-8 (byte {error.start}): save it as plain text") from None
    return Text(name, content)
