from __future__ import annotations

import os
from pathlib import Path

import pytest
import ray

from effillm_worker import head
from effillm_worker.fleet.__main__ import main
from tests.support.fake_ray_head import fake_ray_head


@pytest.fixture
def settings(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The environment of a fleet that lacks nothing but a head."""
    # `main` changes the environment of its process; let it change a copy.
    monkeypatch.setattr(os, "environ", os.environ.copy())
    for name in [name for name in os.environ if name.startswith(("RAY_", "EFFILLM_"))]:
        monkeypatch.delitem(os.environ, name)
    monkeypatch.setitem(os.environ, "EFFILLM_DATABASE_URL", database_url)
    monkeypatch.setitem(os.environ, "EFFILLM_DATA_DIR", str(tmp_path))
    return monkeypatch


def test_a_fleet_refuses_a_cluster_that_asks_for_no_token_unless_it_is_on_loopback(
    settings: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # The stand-in for a head keeps no table of versions.
    settings.setattr(head, "head_versions", lambda _: head.own_versions())
    settings.setattr(head, "is_loopback", lambda _: False)
    with fake_ray_head(ray.__version__) as address:
        settings.setitem(os.environ, "EFFILLM_RAY_ADDRESS", address)
        assert main([]) == 2
    assert f"the Ray cluster at {address} runs anybody's code without a token" in capsys.readouterr().err


def test_a_fleet_with_another_token_than_the_heads_is_refused(
    settings: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    head.ensure_token(head.token_file(tmp_path))
    with fake_ray_head(ray.__version__, "another") as address:
        settings.setitem(os.environ, "EFFILLM_RAY_ADDRESS", address)
        assert main([]) == 2
    assert "refuses our token" in capsys.readouterr().err
