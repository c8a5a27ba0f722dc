from __future__ import annotations

import time

from effillm_server.ledger.engine import connect
from effillm_worker.fleet.leadership import CHANNEL, Leadership
from tests.support.actors import database_away
from tests.support.postgres import run_sql


def test_one_of_two_leads_and_the_other_takes_over_when_it_resigns(database_url: str) -> None:
    engine = connect(database_url, "fleet")
    first, second = Leadership(engine), Leadership(engine)
    assert (first.is_held(), second.is_held()) == (True, False)
    assert (first.is_held(), second.is_held()) == (True, False)
    first.resign()
    assert (second.is_held(), first.is_held()) == (True, False)
    second.resign()
    first.resign()
    engine.dispose()


def test_a_leader_whose_session_was_ended_knows_it_and_stands_for_election_again(
    database_url: str, postgres_url: str
) -> None:
    engine = connect(database_url, "fleet")
    first, second = Leadership(engine), Leadership(engine)
    assert first.is_held()
    with database_away(postgres_url, database_url):
        assert not first.is_held()
        assert not second.is_held()
    assert second.is_held()
    assert not first.is_held()
    for one in (first, second):
        one.resign()
    engine.dispose()


def test_a_notification_ends_the_waiting_at_once_and_silence_ends_it_in_time(database_url: str) -> None:
    engine = connect(database_url, "fleet")
    leader = Leadership(engine)
    assert leader.is_held()
    run_sql(database_url, f"NOTIFY {CHANNEL}, '{{}}'")
    began = time.monotonic()
    assert leader.wait(20)
    assert time.monotonic() - began < 10
    assert not leader.wait(0.05)
    leader.resign()
    engine.dispose()


def test_what_a_running_sweep_says_all_the_time_does_not_wake_the_fleet(database_url: str) -> None:
    engine = connect(database_url, "fleet")
    leader = Leadership(engine)
    assert leader.is_held()
    for kind in ("job_leased", "job_measured"):
        run_sql(database_url, f"""NOTIFY {CHANNEL}, '{{"kind":"{kind}","sweep":"s1","job":1}}'""")
    assert not leader.wait(0.1)
    run_sql(database_url, f"""NOTIFY {CHANNEL}, '{{"kind":"sweep_created","sweep":"s1","job":null}}'""")
    assert leader.wait(20)
    leader.resign()
    engine.dispose()


def test_waiting_without_a_session_takes_its_time_and_no_more(database_url: str) -> None:
    engine = connect(database_url, "fleet")
    assert not Leadership(engine).wait(0.01)
    engine.dispose()
