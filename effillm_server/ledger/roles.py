"""`python -m effillm_server.ledger.roles`: migrate the database, give every process a login of its own and no more than it needs.

Connects as the database's owner. Each `--login` names a process and the file that gets its URL: `api=…`, `fleet=…`, and
`node:NAME=…` for the workers of one node; a trailing `*` in NAME stands for all nodes that begin so. Run it at every upgrade.
"""

from __future__ import annotations

import argparse
import re
import secrets
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, make_url
from sqlalchemy.exc import DBAPIError, OperationalError

from effillm_server.errors import BadInput, EffillmError, Unavailable
from effillm_server.ledger import grants
from effillm_server.ledger.engine import connect, migrate, schema_state
from effillm_server.ledger.revisions import is_newer, mismatch
from effillm_server.secret_files import write_secret
from effillm_server.settings import Settings

# Postgres cuts longer role names off.
LONGEST_NODE = 63 - len(grants.NODE_LOGIN)
BYTES = 32


@dataclass(frozen=True)
class Login:
    """A login to have: its name, the role it is a member of, and the file that holds its URL."""

    name: str
    role: str
    file: Path


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0; 1 when the database does not answer, 2 for wrong options."""
    try:
        options = _parser().parse_args(arguments)
        logins = [parse_login(text) for text in options.login]
        made = secure(_owner_url(options.password_file), logins, rotate=options.rotate)
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except EffillmError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for login in logins:
        print(f"{login.name}: {'URL written to' if login.name in made else 'URL kept in'} {login.file}")
    print("the schema is current; roles and grants are in force")
    return 0


def secure(url: str, logins: Sequence[Login] = (), *, rotate: bool = False) -> set[str]:
    """Migrate, then roles, grants and logins; names of the logins whose URL was written anew.

    A URL that is in its file already stays, and its password is set again: it may be that of a restored database.
    Raises Unavailable, or BadInput when this login may not create roles or a file cannot be written.
    """
    engine = connect(url, "migrate")
    written = set()
    try:
        _migrate(url, engine)
        with engine.begin() as connection:
            # Two runs at once, of two replicas for one, would both create what is missing.
            connection.exec_driver_sql("SELECT pg_advisory_xact_lock(%s)", (0x0EFF600,))
            for role in grants.ROLES:
                _create(connection, role, "NOLOGIN")
            for statement in grants.statements(_quoted(str(engine.url.database))):
                connection.exec_driver_sql(statement.replace("%", "%%"))
            for login in logins:
                password = None if rotate else _password(login.file)
                if password is None:
                    password = secrets.token_urlsafe(BYTES)
                    new = make_url(url).set(username=login.name, password=password)
                    write_secret(login.file, new.render_as_string(hide_password=False), replace=True)
                    written.add(login.name)
                _enter(connection, login, password)
    except OperationalError as error:
        raise Unavailable(f"the database does not answer: {_first_line(error)}") from error
    except DBAPIError as error:
        raise BadInput(
            f"roles and grants were refused ({_first_line(error)}): run this as the owner of the database, with CREATEROLE"
        ) from error
    finally:
        engine.dispose()
    return written


def parse_login(text: str) -> Login:
    """The login that `WHO=FILE` asks for. Raises BadInput."""
    who, equals, file = text.partition("=")
    roles = {"api": grants.API, "fleet": grants.FLEET}
    node = who.removeprefix("node:")
    if equals and file and who in roles:
        return Login(f"{roles[who]}_login", roles[who], Path(file))
    if (
        equals
        and file
        and who.startswith("node:")
        and re.fullmatch(rf"(?=.{{1,{LONGEST_NODE}}}$)[A-Za-z0-9.-]*\*?", node)
    ):
        return Login(f"{grants.NODE_LOGIN}{node}", grants.WORKER, Path(file))
    raise BadInput(
        f"--login {text!r}: expected api=FILE, fleet=FILE or node:NAME=FILE, NAME of at most {LONGEST_NODE} letters, digits, "
        "dots and dashes"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m effillm_server.ledger.roles", description=__doc__)
    parser.add_argument("--login", action="append", default=[], metavar="WHO=FILE", help="api, fleet or node:NAME")
    parser.add_argument("--password-file", type=Path, help="the owner's password, which is then not in the URL")
    parser.add_argument("--rotate", action="store_true", help="new passwords for these logins")
    return parser


def _migrate(url: str, engine: Engine) -> None:
    state = schema_state(engine)
    if is_newer(state):
        raise Unavailable(mismatch(state))
    migrate(url)


def _owner_url(password_file: Path | None) -> str:
    url = Settings.from_environment().database_url
    if not url:
        raise BadInput(
            "EFFILLM_DATABASE_URL is not set: the owner's, postgresql://owner@host:5432/database",
            field="EFFILLM_DATABASE_URL",
        )
    if password_file is None:
        return url
    try:
        password = password_file.read_text().strip()
    except OSError as error:
        raise BadInput(f"--password-file {password_file} cannot be read: {error.strerror}") from None
    return make_url(url).set(password=password).render_as_string(hide_password=False)


def _password(file: Path) -> str | None:
    """The password in a URL that was written before; None when there is none."""
    try:
        return make_url(file.read_text().strip()).password or None
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise BadInput(f"{file} cannot be read: {error.strerror}") from None


def _create(c: Connection, name: str, how: str) -> None:
    if c.exec_driver_sql("SELECT 1 FROM pg_roles WHERE rolname = %s", (name,)).first() is None:
        c.exec_driver_sql(f"CREATE ROLE {_quoted(name)} {how}")


def _enter(c: Connection, login: Login, password: str) -> None:
    _create(c, login.name, "LOGIN")
    c.exec_driver_sql(f"GRANT {login.role} TO {_quoted(login.name)}")
    # Hashed here, as psql's \password does: the server's log may hold statements, and must not hold passwords.
    verifier = _verifier(c, login.name, password).replace("%", "%%")
    c.exec_driver_sql(f"ALTER ROLE {_quoted(login.name)} LOGIN PASSWORD '{verifier}'")


def _verifier(c: Connection, name: str, password: str) -> str:
    from psycopg2.extensions import encrypt_password

    raw: Any = c.connection.driver_connection
    return str(encrypt_password(password, name, scope=raw, algorithm="scram-sha-256"))


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _first_line(error: DBAPIError) -> str:
    return (str(error.orig).strip() or type(error.orig).__name__).splitlines()[0]


if __name__ == "__main__":
    sys.exit(main())
