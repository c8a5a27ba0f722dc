from __future__ import annotations

import base64

import pytest

from effillm_server.api import pages
from effillm_server.errors import BadInput


def test_a_cursor_gives_back_its_key() -> None:
    assert pages.decode_int("jobs", pages.encode("jobs", 7), first=-1) == 7
    assert pages.decode_text("sweeps", pages.encode("sweeps", "s3k")) == "s3k"


def test_no_cursor_is_the_beginning() -> None:
    assert pages.decode_int("jobs", None, first=-1) == -1
    assert pages.decode_text("sweeps", None) is None


FORGED = ["", "?", "é", "AAAA", pages.encode("sweeps", "s3k"), pages.encode("jobs", "x"), pages.encode("jobs", -2),
          pages.encode("jobs", 2**63), base64.urlsafe_b64encode(b'["jobs",true]').decode(),
          base64.urlsafe_b64encode(b"[" * 150).decode()[:200]]  # fmt: skip


@pytest.mark.parametrize("cursor", FORGED)
def test_what_is_no_cursor_of_this_list_is_refused(cursor: str) -> None:
    with pytest.raises(BadInput, match="leave it out to start over"):
        pages.decode_int("jobs", cursor, first=-1)


def test_a_text_key_that_no_id_could_be_is_refused() -> None:
    with pytest.raises(BadInput):
        pages.decode_text("sweeps", pages.encode("sweeps", "a\x00b"))
