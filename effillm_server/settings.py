"""Settings from the environment, prefix EFFILLM_: read once at a process's edge, passed on as a value."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, field_validator

from effillm_server.contract.base import Contract
from effillm_server.errors import BadInput

PREFIX = "EFFILLM_"


class Settings(Contract):
    """Every setting of every process; the variable is the upper-case name behind EFFILLM_."""

    database_url: str | None = Field(
        None, repr=False, description="Postgres to use; none: an embedded one under the data directory"
    )
    database_url_file: Path | None = Field(
        None, description="file with the URL of the Postgres to use, read when EFFILLM_DATABASE_URL is not set"
    )
    ray_address: str | None = Field(None, description="head of a Ray cluster, host:port; none: a local Ray is started")
    data_dir: Path = Field(
        Path.home() / ".local/share/effillm", description="where the embedded database, spools and caches live"
    )
    host: str = Field("127.0.0.1", description="address the API listens on")
    port: Annotated[int, Field(ge=0, le=65_535)] = Field(8750, description="port of the API; 0 takes a free one")
    max_jobs: Annotated[int, Field(ge=1)] = Field(1_000_000, description="largest sweep accepted, in jobs")
    lease_ttl_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(
        60.0, description="seconds a lease lives without renewal"
    )
    group_max_age_s: Annotated[float, Field(gt=0)] = Field(
        600.0, description="seconds a load group may keep its device"
    )
    model_root: Path | None = Field(None, description="the only folder from which local models are loaded")
    allow_pickled: tuple[str, ...] = Field(
        (), description="comma-separated model ids whose pickled weights may be loaded"
    )
    prices: Path | None = Field(None, description="YAML file with the lab's own prices by hardware class")
    runtimes: dict[str, str] = Field(
        default_factory=dict, description="JSON object: runtime name -> Python interpreter"
    )
    allow_models: tuple[str, ...] = Field(
        ("*",), description="comma-separated patterns of the hub ids that may be loaded"
    )
    admin_key: str | None = Field(None, repr=False, description="first admin key")
    admin_key_file: Path | None = Field(
        None, description="file with the first admin key; one is made and written there if it does not exist"
    )
    require_keys: bool = Field(False, description="ask for keys on loopback too; anywhere else they always are")
    public_url: str | None = Field(
        None, pattern=r"^https?://[^/\s]+/?$", description="address under which browsers reach the server"
    )
    session_lifetime_s: Annotated[float, Field(ge=60)] = Field(
        43_200.0, description="seconds after which a browser signs in anew"
    )
    rate_per_key: Annotated[float, Field(ge=0)] = Field(
        100.0, description="requests a second that a key may make for long; 0: any number"
    )
    rate_per_address: Annotated[float, Field(ge=0)] = Field(
        200.0, description="requests a second from one address where keys are asked for; 0: any number"
    )
    lock_dir: Path = Field(
        Path("/run/lock/effillm"), description="where device lock files live; shared by all clusters of a box"
    )
    autoscale: Annotated[int, Field(ge=0)] = Field(
        0,
        description="devices of one class that the fleet asks an autoscaling cluster for while jobs wait; 0: it asks for none",
    )
    autoscale_idle_s: Annotated[float, Field(gt=0)] = Field(
        120.0, description="seconds a device of an autoscaling cluster idles before its node is let go"
    )

    @field_validator("allow_pickled", "allow_models", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("runtimes", mode="before")
    @classmethod
    def _object(cls, value: Any) -> Any:
        return json.loads(value) if isinstance(value, str) else value

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Settings:
        """Settings in force. Raises BadInput naming the variable, the value and what is allowed."""
        source = os.environ if environment is None else environment
        values = {name: source[PREFIX + name.upper()] for name in cls.model_fields if source.get(PREFIX + name.upper())}
        try:
            return cls.model_validate(values)._with_database_url()
        except ValidationError as error:
            first = error.errors()[0]
            setting = str(first["loc"][0])
            name = PREFIX + setting.upper()
            shown = repr(values[setting]) if cls.model_fields[setting].repr else "***"
            raise BadInput(f"{name}={shown}: {first['msg']}", field=name) from None

    def _with_database_url(self) -> Settings:
        """These settings with the database's URL out of its file. The URL itself, where there is one, wins."""
        if self.database_url is not None or self.database_url_file is None:
            return self
        field = f"{PREFIX}DATABASE_URL_FILE"
        try:
            url = self.database_url_file.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is no text"
            raise BadInput(f"{field}={self.database_url_file} cannot be read: {why}", field=field) from None
        if not url:
            raise BadInput(f"{field}={self.database_url_file} is empty: expected a postgresql:// URL", field=field)
        return self.model_copy(update={"database_url": url})
