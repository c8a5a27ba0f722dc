from __future__ import annotations

import json
import logging
import sys
from typing import Any

import pytest

from effillm_server.api.logs import JsonLines
from effillm_server.redaction import Redaction

SECRET = 'pa55"w0rd\\é with everything'


def line(message: str, *arguments: object, error: BaseException | None = None, **extra: Any) -> str:
    """What the formatter makes of one record."""
    info = (type(error), error, error.__traceback__) if error is not None else None
    record = logging.getLogger("test").makeRecord("test", logging.INFO, "f", 1, message, arguments, info, extra=extra)
    return JsonLines(Redaction({"THE_SECRET": SECRET})).format(record)


def test_a_record_is_one_line_of_json_with_its_fields() -> None:
    found = json.loads(line("request", path="/v1/sweeps", status=200, seconds=0.5, nested={"a": [1, None, True]}))
    assert found["event"] == "request"
    assert (found["path"], found["status"], found["seconds"]) == ("/v1/sweeps", 200, 0.5)
    assert found["nested"] == {"a": [1, None, True]}


@pytest.mark.parametrize("written", [
    lambda: line(f"sent {SECRET}"), lambda: line("sent %s", SECRET), lambda: line("sent", header=SECRET),
    lambda: line("sent", deep={"a": [{"b": SECRET}]}), lambda: line("sent", thing=ValueError(SECRET)),
    lambda: line("failed", error=_raised()),
])  # fmt: skip
def test_a_secret_is_hidden_wherever_it_comes_in(written: Any) -> None:
    text = written()
    assert "***" in text
    assert "w0rd" not in text and "everything" not in text
    json.loads(text)


def test_a_text_that_no_encoding_has_breaks_no_line() -> None:
    assert json.loads(line("bytes", label="\udc80\ud83d"))["label"] == "\udc80\ud83d"


def _raised() -> BaseException:
    try:
        raise RuntimeError(f"could not connect with {SECRET}")
    except RuntimeError:
        error = sys.exc_info()[1]
    assert error is not None
    return error
