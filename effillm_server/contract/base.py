"""The base of every contract model and the version of the contract."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

CONTRACT_VERSION = 1


class Contract(BaseModel):
    """A value that crosses a process boundary: immutable, unknown keys refused, no NaN or infinity."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
