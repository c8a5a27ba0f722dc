"""A schema that is not this code's: who refuses, in which words, and what an actor that holds a lease meanwhile may still do."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import text

from effillm_server.api import __main__ as api
from effillm_server.errors import Unavailable
from effillm_server.ledger import queue, roles
from effillm_server.ledger.engine import connect
from effillm_server.ledger.revisions import check_schema
from effillm_server.lifecycle import JobState
from tests.support.ledger import BOOT, TTL_S, cell, join, leased, ledger, measured, request, submit
from tests.support.postgres import run_sql

NEWER = "UPDATE alembic_version SET version_num = '9999'"


def test_an_empty_database_is_to_be_migrated_first(empty_database_url: str) -> None:
    with (
        ledger(empty_database_url) as engine,
        pytest.raises(Unavailable, match=r"at revision none, this code needs .* run the"),
    ):
        check_schema(engine)


def test_a_newer_database_is_refused_by_api_fleet_and_migration_in_one_sentence(
    database_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from effillm_worker.fleet import __main__ as fleet

    run_sql(database_url, NEWER)
    said = "at revision 9999, which this version .* does not know: it was migrated by a newer EffiLLM; install that version here"
    with pytest.raises(Unavailable, match=said):
        api._migrated(database_url)
    with pytest.raises(Unavailable, match=said):
        roles.secure(database_url)
    monkeypatch.setenv("EFFILLM_DATABASE_URL", database_url)
    monkeypatch.setenv("EFFILLM_RAY_ADDRESS", "127.0.0.1:1")
    assert fleet.main([]) == 1
    assert "migrated by a newer EffiLLM" in capsys.readouterr().err


def test_an_api_whose_login_may_not_migrate_says_who_does(database_url: str, tmp_path: Path) -> None:
    login = roles.parse_login(f"api={tmp_path / 'url'}")
    roles.secure(database_url, [login])
    run_sql(database_url, "UPDATE alembic_version SET version_num = '0003'")
    with pytest.raises(
        Unavailable, match=r"at revision 0003, this code needs .*: run the migration first \(`python -m"
    ):
        api._migrated(login.file.read_text())


def test_what_an_old_actor_holds_is_accepted_while_the_schema_goes_forward(database_url: str) -> None:
    """Migrations of a minor version only add; statements that an actor's session has prepared before go on working."""
    engine = connect(database_url, "worker")
    with engine.begin() as c:
        submit(c, *(cell(batch_size=size) for size in (1, 2, 4)))
        join(c)
        lease = leased(c)
    with engine.begin() as c:
        first = queue.finish(c, "box-cpu0", BOOT, lease.job_id, lease.fence, measured(), next_lease=request())
    assert first.next is not None
    for table in ("job", "device", "sweep", "attempt", "measurement", "sample", "event", "child"):
        run_sql(database_url, f"ALTER TABLE {table} ADD COLUMN of_a_later_version text")
    run_sql(database_url, NEWER)
    with engine.begin() as c:
        held = ((first.next.job_id, first.next.fence),)
        assert queue.renew(c, "box-cpu0", BOOT, held, TTL_S).kept == held
        second = queue.finish(c, "box-cpu0", BOOT, *held[0], measured(), next_lease=request())
    assert (second.accepted, second.state) == (True, JobState.MEASURED)
    assert second.next is not None
    with engine.connect() as c:
        assert c.execute(text("SELECT count(*) FROM sample")).scalar() == 26
    engine.dispose()
