"""What is asked and answered about keys, sessions and the audit trail."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints, model_validator

from effillm_server.api import access_examples as examples
from effillm_server.api.auth import Scope
from effillm_server.records import AuditRecord, KeyRecord

LONGEST_LIFETIME_DAYS = 3650
Owner = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$")]


def _example(value: dict[str, Any]) -> ConfigDict:
    return ConfigDict(json_schema_extra={"examples": [value]})


def _asked(value: dict[str, Any]) -> ConfigDict:
    """Of what is sent to us: unknown fields are refused."""
    return ConfigDict(json_schema_extra={"examples": [value]}, extra="forbid")


class KeyRequest(BaseModel):
    """A key to be made: whose it is, what it opens, and until when."""

    model_config = _asked(examples.KEY_REQUEST)

    owner: Owner = Field(description="who holds it; stored with what they submit")
    scopes: list[Scope] = Field(
        [Scope.READ], min_length=1, max_length=3,
        description="read: look; submit: also sweeps of one's own; admin: everything",
    )  # fmt: skip
    expires_at: AwareDatetime | None = Field(None, description="when it ends; null: with `lifetime_days`, or never")
    lifetime_days: float | None = Field(None, gt=0, le=LONGEST_LIFETIME_DAYS, description="days until it ends")

    @model_validator(mode="after")
    def _one_end(self) -> Self:
        if self.expires_at is not None and self.lifetime_days is not None:
            raise ValueError("expires_at and lifetime_days both say when the key ends: give one of them")
        return self


class KeyView(BaseModel):
    """A key. What it is made of was shown once, when it was made; `prefix` are its first characters."""

    model_config = _example(examples.KEY)

    id: int
    owner: str
    prefix: str
    scopes: list[str]
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None = Field(description="to the minute")

    @classmethod
    def of(cls, record: KeyRecord, **more: Any) -> Self:
        values = {name: getattr(record, name) for name in KeyView.model_fields}
        return cls.model_validate(values | {"scopes": list(record.scopes)} | more)


class NewKeyView(KeyView):
    """A key that has just been made, for the only time with its text."""

    model_config = _example(examples.NEW_KEY)

    key: str = Field(description="send it as Authorization: Bearer; it cannot be shown again")


class SignIn(BaseModel):
    """The key to sign in with."""

    model_config = _asked(examples.SIGN_IN)

    key: str = Field(min_length=1, max_length=300)


class SessionView(BaseModel):
    """Who one is here. `csrf` goes into the header X-CSRF-Token of every change; null for callers without a cookie."""

    model_config = _example(examples.SESSION)

    owner: str | None = Field(description="null: the local admin of a server that asks for no keys")
    scopes: list[str]
    key: int | None = Field(description="id of the key in use")
    csrf: str | None


class SignedOutView(BaseModel):
    """Whether there was a session to end."""

    model_config = _example(examples.SIGNED_OUT)

    signed_out: bool


class LinkView(BaseModel):
    """A link that signs one browser in, once."""

    model_config = _example(examples.LINK)

    path: str = Field(description="to be appended to the server's address")
    lifetime_s: float


class AuditView(BaseModel):
    """A change: when, by whom, what, to what. `actor` is null for the local admin."""

    model_config = _example(examples.AUDIT)

    id: int
    at: datetime
    actor: str | None
    action: str
    subject: str | None
    request_id: str | None = Field(description="names the request in the server's log")
    data: dict[str, Any]

    @classmethod
    def of(cls, line: AuditRecord) -> Self:
        return cls.model_validate({name: getattr(line, name) for name in cls.model_fields})
