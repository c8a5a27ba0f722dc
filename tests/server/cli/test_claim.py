"""One process holds a data directory, and others learn where it answers."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from effillm_server.cli.claim import FILE, Claim, read, running
from effillm_server.errors import BadInput, Conflict


def test_a_second_claim_is_refused_and_says_who_holds_the_first(tmp_path: Path) -> None:
    claim = Claim(tmp_path)
    claim.publish({"url": "http://127.0.0.1:1"})
    with pytest.raises(Conflict, match=rf"already runs on .* \(process {os.getpid()}, http://127.0.0.1:1\)"):
        Claim(tmp_path)
    claim.release()


def test_a_released_directory_can_be_claimed_again(tmp_path: Path) -> None:
    Claim(tmp_path).release()
    Claim(tmp_path).release()


def test_what_the_holder_published_is_found_while_it_runs_only(tmp_path: Path) -> None:
    claim = Claim(tmp_path)
    claim.publish({"url": "http://127.0.0.1:1"})
    assert running(tmp_path) == {"pid": os.getpid(), "url": "http://127.0.0.1:1"}
    claim.release()
    assert running(tmp_path) == {}


def test_a_holder_that_died_without_tidying_up_counts_as_gone(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text('{"pid": 1, "url": "http://127.0.0.1:1"}')
    assert read(tmp_path)["url"] == "http://127.0.0.1:1"
    assert running(tmp_path) == {}


def test_a_directory_that_cannot_be_used_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="EFFILLM_DATA_DIR"):
        Claim(tmp_path / "file" / "below")
