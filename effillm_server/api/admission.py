"""Before the first request: the operator's admin key is in force, and nobody listens to a network without one."""

from __future__ import annotations

import sqlalchemy

from effillm_server import credentials
from effillm_server.api.keyring import is_required
from effillm_server.errors import BadInput
from effillm_server.ledger import keys
from effillm_server.settings import Settings

OWNER = "admin"


def admit(engine: sqlalchemy.Engine, settings: Settings) -> None:
    """Stores the operator's admin key unless it is there. Raises BadInput when keys are asked for and no admin has one.

    A key that has been revoked stays revoked, however often it is given again.
    """
    given = credentials.admin_key(settings)
    with engine.begin() as connection:
        if given is not None:
            made = keys.create_key(connection, OWNER, ("admin",), credentials.digest(given), credentials.prefix(given))
            if made is not None:
                keys.record(
                    connection, None, "key.create", str(made.id), None, {"owner": OWNER, "by": "EFFILLM_ADMIN_KEY"}
                )
        if is_required(settings) and not keys.has_admin_key(connection):
            raise BadInput(_nobody(settings, is_revoked=given is not None), field="EFFILLM_ADMIN_KEY")


def _nobody(settings: Settings, *, is_revoked: bool) -> str:
    why = (
        f"EFFILLM_HOST={settings.host} is not this machine alone"
        if not settings.require_keys
        else "EFFILLM_REQUIRE_KEYS is set"
    )
    if is_revoked:
        return f"{why}, and the admin key given is revoked: set EFFILLM_ADMIN_KEY to a new one"
    return (
        f"{why}, so keys are asked for, and nobody has an admin key: set EFFILLM_ADMIN_KEY (`openssl rand -hex 32` makes "
        "one), or EFFILLM_ADMIN_KEY_FILE to a file that is to have one"
    )
