from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
from sqlalchemy import create_engine, make_url, text

from effillm_server.api import examples
from effillm_server.api.__main__ import _check_clock, _listening, main
from effillm_server.ledger.engine import connect
from effillm_server.settings import Settings
from tests.support.clock import a_clock_off_by

NOBODY = "postgresql://nobody:secret@127.0.0.1:9/nothing"
PATIENCE_S = 30


def environment(**settings: str) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("EFFILLM_")}
    return inherited | {f"EFFILLM_{name}": value for name, value in settings.items()}


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Starts that fail: exit code and the one sentence said."""

    def run(**settings: str) -> tuple[int, str]:
        for name in [name for name in os.environ if name.startswith("EFFILLM_")]:
            monkeypatch.delenv(name)
        for name, value in settings.items():
            monkeypatch.setenv(f"EFFILLM_{name}", value)
        code = main()
        said = capsys.readouterr()
        assert said.out == ""
        (sentence,) = said.err.splitlines()
        return code, sentence

    return run


@contextmanager
def started(**settings: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process and its address, once it listens."""
    with subprocess.Popen(
        [sys.executable, "-m", "effillm_server.api"],
        env=environment(**settings),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith("listening on http://"), line + (process.stderr.read() if process.stderr else "")
            yield process, line.removeprefix("listening on ").strip().replace("0.0.0.0", "127.0.0.1")
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_until_a_signal_and_ends_with_0_though_a_stream_is_open(
    database_url: str, number: signal.Signals
) -> None:
    with (
        started(DATABASE_URL=database_url, PORT="0") as (process, url),
        httpx.Client(base_url=url, trust_env=False, timeout=PATIENCE_S) as client,
    ):
        assert client.get("/readyz").json() == {"status": "ready"}
        with client.stream("GET", "/v1/events") as stream:
            lines = stream.iter_lines()
            assert next(lines).startswith("retry:")
            process.send_signal(number)
            assert list(lines) is not None
        assert process.wait(PATIENCE_S) == 0


def test_no_answer_waits_for_its_own_acknowledgement() -> None:
    """Head and body go out in two writes: where small ones are held back, the second waits 40 ms."""
    with _listening(Settings(port=0)) as listener:
        listener.listen()
        with socket.create_connection(listener.getsockname()[:2]) as _, listener.accept()[0] as accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_an_empty_database_is_migrated(empty_database_url: str) -> None:
    with started(DATABASE_URL=empty_database_url, PORT="0") as (_, url):
        answer = httpx.post(f"{url}/v1/sweeps", json=examples.DEFINITION, trust_env=False, timeout=PATIENCE_S)
    assert answer.status_code == 201


def test_a_clock_that_is_off_is_said_when_it_starts(
    database_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engine = connect(database_url, "api")
    _check_clock(engine)
    assert caplog.records == []
    monkeypatch.setattr("effillm_server.ledger.clock.datetime", a_clock_off_by(timedelta(minutes=5)))
    _check_clock(engine)
    engine.dispose()
    (said,) = caplog.records
    assert said.getMessage() == "clock.off"
    assert "clock is 300 s ahead of the database's: set it by NTP" in vars(said)["why"]


def submit(url: str) -> httpx.Response:
    headers = {"Idempotency-Key": "the-same"}
    return httpx.post(
        f"{url}/v1/sweeps", json=examples.DEFINITION, headers=headers, trust_env=False, timeout=PATIENCE_S
    )


def test_killed_in_the_middle_of_a_submission_nothing_is_left_and_the_repeat_stores_it_whole(database_url: str) -> None:
    engine = create_engine(make_url(database_url).set(drivername="postgresql+psycopg2"))
    waiting = text(
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    )
    sweeps = text("SELECT count(*) FROM sweep")
    with (
        ThreadPoolExecutor(1) as pool,
        engine.connect() as holder,
        engine.connect().execution_options(isolation_level="AUTOCOMMIT") as watcher,
        started(DATABASE_URL=database_url, PORT="0") as (process, url),
    ):
        holder.execute(text("LOCK TABLE job IN SHARE MODE"))
        answer = pool.submit(submit, url)
        while not watcher.execute(waiting).scalar_one():
            assert not answer.done()
        process.kill()
        assert isinstance(answer.exception(PATIENCE_S), httpx.TransportError)
        holder.rollback()
    with started(DATABASE_URL=database_url, PORT="0") as (_, url), engine.connect() as c:
        assert c.execute(sweeps).scalar_one() == 0
        first, second = submit(url), submit(url)
    engine.dispose()
    assert (first.status_code, second.status_code) == (201, 200)
    assert first.json()["total"] == 4 and first.json()["id"] == second.json()["id"]


def test_a_taken_port_is_one_sentence_and_1(start: Callable[..., tuple[int, str]], database_url: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        code, sentence = start(DATABASE_URL=database_url, PORT=str(port))
    assert code == 1
    assert f"port {port} on 127.0.0.1 is taken" in sentence and "EFFILLM_PORT" in sentence


def test_a_database_that_does_not_answer_is_one_sentence_and_1_without_its_password() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "effillm_server.api"],
        env=environment(DATABASE_URL=NOBODY, PORT="0"),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (1, "")
    (sentence,) = ended.stderr.splitlines()
    assert "does not answer" in sentence and "EFFILLM_DATABASE_URL" in sentence
    assert "secret" not in sentence


def test_a_database_of_a_newer_version_is_one_sentence_and_1(
    start: Callable[..., tuple[int, str]], database_url: str
) -> None:
    engine = create_engine(make_url(database_url).set(drivername="postgresql+psycopg2"))
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999_future'"))
    engine.dispose()
    code, sentence = start(DATABASE_URL=database_url, PORT="0")
    assert code == 1
    assert "newer" in sentence


@pytest.mark.parametrize("settings, says", [
    ({}, "EFFILLM_DATABASE_URL is not set"),
    ({"DATABASE_URL": "not a url"}, "cannot be read"),
    ({"DATABASE_URL": "sqlite://"}, "expected a postgresql:// URL"),
    ({"DATABASE_URL": NOBODY, "PORT": "many"}, "EFFILLM_PORT='many'"),
    ({"DATABASE_URL": NOBODY, "PORT": "65536"}, "EFFILLM_PORT='65536'"),
])  # fmt: skip
def test_bad_settings_are_one_sentence_and_2(
    start: Callable[..., tuple[int, str]], settings: dict[str, str], says: str
) -> None:
    code, sentence = start(**({"PORT": "0"} | settings))
    assert code == 2
    assert says in sentence


def test_beyond_this_machine_it_does_not_start_without_an_admin_key(
    start: Callable[..., tuple[int, str]], database_url: str
) -> None:
    code, sentence = start(DATABASE_URL=database_url, PORT="0", HOST="0.0.0.0")
    assert code == 2
    assert all(word in sentence for word in ("EFFILLM_HOST=0.0.0.0", "EFFILLM_ADMIN_KEY", "EFFILLM_ADMIN_KEY_FILE"))


def test_beyond_this_machine_it_asks_everybody_for_a_key_which_it_makes_into_a_file(
    database_url: str, tmp_path: Path
) -> None:
    file = tmp_path / "admin-key"
    with started(DATABASE_URL=database_url, PORT="0", HOST="0.0.0.0", ADMIN_KEY_FILE=str(file)) as (_, url):
        assert httpx.get(f"{url}/v1/sweeps", trust_env=False, timeout=120).status_code == 401
        headers = {"Authorization": f"Bearer {file.read_text().strip()}"}
        assert httpx.get(f"{url}/v1/sweeps", headers=headers, trust_env=False, timeout=120).status_code == 200
        # There is no name of this machine that is the only right one.
        assert (
            httpx.get(f"{url}/healthz", headers={"Host": "lab.example"}, trust_env=False, timeout=120).status_code
            == 200
        )
