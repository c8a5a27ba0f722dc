"""What the catalog knows about a model, a hardware class, a workload: frozen values."""

from __future__ import annotations

from datetime import date
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, model_validator

from effillm_server.contract.base import Contract
from effillm_server.contract.quantization import Quantization
from effillm_server.contract.sweep import ModelChoice, Slug

Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
Dollars = Annotated[float, Field(gt=0)]


class ModelFacts(Contract):
    """A model's exact size and shape. `architecture` is a transformers config with its `model_type`, None when unknown.

    `parameters` counts distinct weights: a matrix used twice counts once. It is None where no source states it; then the
    count comes with the first measurement (`LoadedModel.parameters`). `label` is the advertised size, for people only.
    """

    id: str
    family: str
    label: str
    parameters: Annotated[int, Field(ge=1)] | None
    context_window: Annotated[int, Field(ge=1)] | None
    architecture: dict[str, Any] | None = None
    layers: int | None = None
    kv_heads: int | None = None
    head_dim: int | None = None
    revision: str | None = None
    source: Text


def model_key(choice: ModelChoice) -> str:
    """The key of a choice's facts: its id, with the revision where the user named one."""
    return choice.id if choice.revision is None else f"{choice.id}@{choice.revision}"


class HardwareFacts(Contract):
    """A class of devices. `device_names` are regular expressions for the driver's name, vendor words removed, case ignored."""

    name: Slug
    kind: Literal["gpu", "cpu"]
    device_names: tuple[str, ...] = ()
    memory_bytes: Annotated[int, Field(ge=1)] | None = None
    purchase_usd: Dollars | None = None
    hourly_usd: Dollars | None = None
    price_source: Text
    price_date: date
    note: str | None = None
    unsupported: dict[Quantization, Text] = Field(default_factory=dict)


class Price(Contract):
    """What a device of a class costs: to buy, per hour, or both; where the figures are from, and from when."""

    purchase_usd: Dollars | None = None
    hourly_usd: Dollars | None = None
    source: Text
    date: date

    @model_validator(mode="after")
    def _some(self) -> Price:
        if self.purchase_usd is None and self.hourly_usd is None:
            raise ValueError("a price names purchase_usd, hourly_usd or both")
        return self


class Turn(Contract):
    """One message of a conversation."""

    role: Literal["user", "assistant"]
    text: Text


class Prompt(Contract):
    """One prompt: a text, or a conversation that ends with the user's turn. `language` is set where it is code."""

    id: Text
    text: Text | None = None
    turns: tuple[Turn, ...] = ()
    language: str | None = None
    kind: str | None = None

    @model_validator(mode="after")
    def _one_form(self) -> Prompt:
        if (self.text is None) == (not self.turns):
            raise ValueError(f"prompt {self.id!r} has a text or turns, one of the two")
        roles = [turn.role for turn in self.turns]
        if self.turns and (roles[0::2] != ["user"] * (len(roles) // 2 + 1) or "user" in roles[1::2]):
            raise ValueError(f"prompt {self.id!r}: turns alternate user, assistant and end with the user")
        return self

    def render(self) -> str:
        """The prompt as one string: conversations as `User:` and `Assistant:` lines with the assistant's turn open."""
        if self.text is not None:
            return self.text
        lines = [f"{turn.role.capitalize()}: {turn.text}" for turn in self.turns]
        return "\n".join([*lines, "Assistant:"])


class Workload(Contract):
    """A named set of prompts in a fixed order, the same for every configuration."""

    name: Slug
    title: Text
    prompts: Annotated[tuple[Prompt, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _unique(self) -> Workload:
        for what, values in (("id", [p.id for p in self.prompts]), ("text", [p.render() for p in self.prompts])):
            twice = sorted({value for value in values if values.count(value) > 1})
            if twice:
                raise ValueError(f"workload {self.name!r}: the {what} {twice[0][:60]!r} stands twice")
        return self
