"""Before the first request: the operator's admin key is in force, and nobody listens to a network without one."""

from __future__ import annotations

import sqlalchemy

from effillm_server import credentials
from effillm_server.errors import BadInput
from effillm_server.ledger import keys
from effillm_server.settings import Settings

OWNER = "admin"


def admit(engine: sqlalchemy.Engine, settings: Settings) -> None:
    """Stores the operator's admin key unless it is there. Raises BadInput when keys are asked for and no admin has one.

    A key that has been revoked stays revoked, however often it is given again.
    """
    given = credentials.admin_key(settings)
    if given is None and not credentials.is_required(settings):
        return
    with engine.begin() as connection:
        if given is not None:
            made = keys.create_key(connection, OWNER, ("admin",), credentials.digest(given), credentials.prefix(given))
            if made is not None:
                keys.record(
                    connection, None, "key.create", str(made.id), None, {"owner": OWNER, "by": "EFFILLM_ADMIN_KEY"}
                )
        if credentials.is_required(settings) and not keys.has_admin_key(connection):
            raise BadInput(credentials.without_admin(settings, is_revoked=given is not None), field="EFFILLM_ADMIN_KEY")
