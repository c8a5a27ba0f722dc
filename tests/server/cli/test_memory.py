from __future__ import annotations

from typing import Any

import pytest

from effillm_server.cli import memory


def job(account: dict[str, Any]) -> dict[str, Any]:
    return {"result": {"measurement": {"memory": {"account": account}}}}


def test_a_job_shows_its_account_with_weights_and_cache_beside_their_predictions(
    capsys: pytest.CaptureFixture[str],
) -> None:
    memory.show(
        job({"weights_bytes": 222_000_000, "weights_predicted_bytes": 70_400_000, "kv_cache_bytes": 3_000_000,
             "kv_cache_predicted_bytes": 2_000_000, "unexplained_bytes": -1_000})
    )  # fmt: skip
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line]
    assert lines == [
        ["memory", "found", "predicted"], ["weights", "222", "MB", "70.4", "MB"], ["kv", "cache", "3", "MB", "2", "MB"],
        ["unexplained", "-1", "kB"],
    ]  # fmt: skip


def test_a_job_without_an_account_shows_nothing_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    memory.show({"result": None})
    memory.show(job({}))
    assert capsys.readouterr().out == ""
