"""What every route needs, made once per process and handed to it: settings, database, catalog, event hub."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated, Protocol, TypeVar, cast

import sqlalchemy
from fastapi import Depends, Path, Request

from effillm_server.api import examples
from effillm_server.api.desk import Desk
from effillm_server.api.hub import Hub
from effillm_server.api.keyring import Keyring
from effillm_server.api.rates import Rates
from effillm_server.api.requests import Requests
from effillm_server.api.together import Together
from effillm_server.api.unchanged import Unchanged
from effillm_server.catalog import Catalog
from effillm_server.catalog.resolve import HubClient
from effillm_server.errors import NotFound
from effillm_server.ledger import keys, queries
from effillm_server.records import DeviceRecord, JobRecord, SweepRecord, Viewer
from effillm_server.settings import Settings


@dataclass
class Tally:
    """What this process has done since it started, for its metrics."""

    leases_reaped: int = 0
    unchanged: Unchanged = field(default_factory=Unchanged)


@dataclass(frozen=True)
class Services:
    """The process's settings, its engine, the catalog, the model hub, the hub of the event stream, its tally, keyring and limits,
    the desk, and those who ask the same together."""

    settings: Settings
    engine: sqlalchemy.Engine
    catalog: Catalog
    models: HubClient
    hub: Hub
    tally: Tally
    keyring: Keyring
    rates: Rates
    metrics: Requests
    desk: Desk = field(default_factory=Desk)
    together: Together = field(default_factory=Together)

    @contextmanager
    def reading(self) -> Iterator[sqlalchemy.Connection]:
        """A connection for a short read; nothing is kept open behind it."""
        with self.engine.connect() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[sqlalchemy.Connection]:
        """A transaction: committed at the end, rolled back on any error."""
        with self.engine.begin() as connection:
            yield connection


def services(request: Request) -> Services:
    """The services of the application that serves this request."""
    return cast(Services, request.app.state.services)


async def _services(request: Request) -> Services:
    # Not by a thread, which is where a function that does not say async would be sent.
    return services(request)


Served = Annotated[Services, Depends(_services)]

# With whose eyes is read what those who may see it are shown alike.
EVERYTHING = Viewer(None, is_admin=True)

SweepId = Annotated[
    str, Path(pattern=r"^[A-Za-z0-9_-]{1,64}$", description="id of a sweep", examples=[examples.SWEEP_ID])
]
JobId = Annotated[int, Path(ge=1, le=2**63 - 1, description="id of a job", examples=[examples.JOB_ID])]
DeviceId = Annotated[
    str,
    Path(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:@-]{0,199}$", description="id of a device", examples=[examples.DEVICE_ID]),
]


def sweep_of(connection: sqlalchemy.Connection, sweep_id: str, viewer: Viewer) -> SweepRecord:
    """The sweep with this id. Raises NotFound, also when it is private to somebody else."""
    return seen(queries.sweep(connection, sweep_id), sweep_id, viewer)


class Owned(Protocol):
    """Something that belongs to somebody: a sweep, as a record or as it is shown."""

    @property
    def owner(self) -> str | None: ...

    @property
    def visibility(self) -> str: ...


S = TypeVar("S", bound=Owned)


def seen(sweep: S | None, sweep_id: str, viewer: Viewer) -> S:
    """The sweep that was read under this id. Raises NotFound for none, and for one that is private to somebody else."""
    if sweep is None or not viewer.sees(sweep.visibility, sweep.owner):
        raise NotFound(f"no sweep has the id {sweep_id!r}; GET /v1/sweeps lists them")
    return sweep


def job_of(connection: sqlalchemy.Connection, job_id: int, viewer: Viewer) -> JobRecord:
    """The job with this id. Raises NotFound, also when its sweep is private to somebody else."""
    found = queries.job(connection, job_id)
    access = keys.access_of(connection, [job_id]).get(job_id)
    if found is None or access is None or not viewer.sees(*access):
        raise NotFound(f"no job has the id {job_id}; GET /v1/sweeps/{{id}}/jobs lists a sweep's")
    return found


def device_of(connection: sqlalchemy.Connection, device_id: str) -> DeviceRecord:
    """The device with this id. Raises NotFound."""
    found = queries.device(connection, device_id)
    if found is None:
        raise NotFound(f"no device has the id {device_id!r}; GET /v1/devices lists them")
    return found
