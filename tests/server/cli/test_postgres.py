"""The embedded Postgres: made once, kept, private, started again after whatever happened to it."""

from __future__ import annotations

import shutil
import signal
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote

import psycopg2
import pytest

from effillm_server.cli.postgres import EmbeddedPostgres
from effillm_server.cli.processes import spawn
from effillm_server.errors import BadInput

Folder = Callable[[str], Path]


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that other users may pass: as root, the server runs as a user of its own."""
    path = Path(tempfile.mkdtemp(prefix="effillm-pg-"))
    path.chmod(0o711)
    yield path
    shutil.rmtree(path)


@contextmanager
def server(data_dir: Path, stop_with: signal.Signals = signal.SIGINT) -> Iterator[EmbeddedPostgres]:
    data_dir.mkdir(parents=True, exist_ok=True)
    postgres = EmbeddedPostgres(data_dir, data_dir / "database.log")
    process = spawn(postgres.prepare())
    try:
        postgres.wait_until_ready(lambda: ended(process))
        yield postgres
    finally:
        process.send_signal(stop_with)
        process.wait(60)
        postgres.remove_socket_directory()


def ended(process: subprocess.Popen[bytes]) -> None:
    assert process.poll() is None, "the server ended"


def execute(postgres: EmbeddedPostgres, statement: str) -> list[tuple[object, ...]]:
    connection = psycopg2.connect(postgres.url)
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute(statement)
            return list(cursor.fetchall()) if cursor.description else []
    finally:
        connection.close()


def test_data_is_kept_from_one_start_to_the_next(folder: Path) -> None:
    with server(folder) as postgres:
        execute(postgres, "CREATE TABLE kept AS SELECT 42 AS value")
    with server(folder) as postgres:
        assert execute(postgres, "SELECT value FROM kept") == [(42,)]


def test_committed_data_survives_a_server_that_was_killed(folder: Path) -> None:
    with server(folder, stop_with=signal.SIGKILL) as postgres:
        execute(postgres, "CREATE TABLE kept AS SELECT 42 AS value")
    with server(folder) as postgres:
        assert execute(postgres, "SELECT value FROM kept") == [(42,)]


def test_it_listens_on_a_socket_that_only_its_owner_reads(folder: Path) -> None:
    with server(folder) as postgres:
        assert execute(postgres, "SHOW listen_addresses") == [("",)]
        place = Path(unquote(postgres.url.partition("host=")[2]))
        assert stat.S_IMODE(place.stat().st_mode) == 0o700
        assert stat.S_IMODE((place / ".s.PGSQL.5432").stat().st_mode) == 0o700


def test_a_path_too_long_for_a_socket_or_with_spaces_works_too(folder: Path) -> None:
    with server(folder / "with a space" / ("long" * 25)) as postgres:
        assert execute(postgres, "SELECT 1") == [(1,)]
        place = Path(unquote(postgres.url.partition("host=")[2]))
    assert not place.exists()


def test_a_cluster_of_another_version_is_refused_in_words(folder: Path) -> None:
    (folder / "postgres").mkdir()
    (folder / "postgres" / "PG_VERSION").write_text("12\n")
    with pytest.raises(BadInput, match="was made by Postgres 12, this installation brings"):
        EmbeddedPostgres(folder, folder / "database.log").prepare()
