"""The campaign's Postgres: a server of its own that can be restarted in every way a machine may do it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg2
import sqlalchemy
from sqlalchemy.pool import NullPool

from effillm_server.cli.postgres import EmbeddedPostgres
from effillm_server.cli.processes import spawn
from effillm_server.ledger.engine import migrate

STOPS = {"fast": signal.SIGINT, "immediate": signal.SIGQUIT, "killed": signal.SIGKILL}


class Database:
    """Started at once. All methods belong to the main thread: the server dies with the thread that forked it."""

    def __init__(self, folder: Path, tcp_port: int | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o755)
        self._embedded = EmbeddedPostgres(folder, folder / "postgres.log")
        # A log that stays small: the disk this lies on is small too, and gets filled.
        self._service = self._embedded.prepare()
        self._service = replace(self._service, command=(*self._service.command, "-c", "max_wal_size=256MB"))
        if tcp_port is not None:
            with (folder / "postgres" / "pg_hba.conf").open("a") as access:
                access.write("host all all 0.0.0.0/0 trust\n")
            on_tcp = ("-c", "listen_addresses=0.0.0.0", "-c", f"port={tcp_port}")
            self._service = replace(self._service, command=(*self._service.command, *on_tcp))
        self._port = tcp_port or 5432
        self._process = spawn(self._service)
        self._wait_until_ready()
        migrate(self.url)
        self.engine = sqlalchemy.create_engine(
            self.url.replace("postgresql:", "postgresql+psycopg2:"), poolclass=NullPool,
            connect_args={"connect_timeout": 5, "application_name": "campaign", "options": "-c statement_timeout=20000"},
        )  # fmt: skip

    @property
    def url(self) -> str:
        """Straight to the server, past every proxy."""
        return self._embedded.url + f"&port={self._port}"

    @property
    def socket(self) -> Path:
        return Path(str(sqlalchemy.make_url(self.url).query["host"])) / f".s.PGSQL.{self._port}"

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def stop(self, how: str) -> None:
        """Ends the server `fast`, `immediate` or `killed`; returns when its main process is gone."""
        if self.is_running:
            os.kill(self._process.pid, STOPS[how])
            self._process.wait(60)

    def start(self) -> None:
        """Starts the server again; returns when it takes connections, or when it found its ancestors still there.

        After SIGKILL the backends need a moment to notice; a server that meets them refuses to start.
        """
        until = time.monotonic() + 60
        while time.monotonic() < until:
            if not self.is_running:
                self._process = spawn(self._service)
            with contextlib.suppress(sqlalchemy.exc.OperationalError):
                self.read("SELECT 1")
                return
            time.sleep(0.2)
        raise AssertionError(f"the database did not come back: {(self._service.log).read_text()[-2000:]}")

    def read(self, statement: str, **values: object) -> list[Any]:
        """Rows of one statement on a fresh connection."""
        with self.engine.connect() as connection:
            return list(connection.execute(sqlalchemy.text(statement), values))

    def scalar(self, statement: str, **values: object) -> Any:
        return self.read(statement, **values)[0][0]

    def terminate_backends(self) -> int:
        """Ends every session but this one's; how many."""
        rows = self.read(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'client backend'"
            " AND pid <> pg_backend_pid()"
        )
        return len(rows)

    def close(self) -> None:
        self.engine.dispose()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.stop("fast")
        if self.is_running:
            self.stop("killed")
        self._embedded.remove_socket_directory()

    def _wait_until_ready(self) -> None:
        until = time.monotonic() + 60
        while True:
            try:
                psycopg2.connect(self.url, connect_timeout=5).close()
                return
            except psycopg2.OperationalError:
                if time.monotonic() > until:
                    raise
            self._check()
            time.sleep(0.05)

    def _check(self) -> None:
        if not self.is_running:
            raise AssertionError(f"the database ended: {self._service.log.read_text()[-2000:]}")
