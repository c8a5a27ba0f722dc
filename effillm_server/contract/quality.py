"""How good a quantized model still is: what a sweep asks for, and what was found. Statistics are computed on read."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StringConstraints, model_validator

from effillm_server.contract.base import Contract

SHIPPED = "shipped"
MIN_TOKENS = 256

_PATH = r"^[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*){0,7}$"
_Path = Annotated[str, StringConstraints(pattern=_PATH, max_length=200)]
_Task = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$")]


class QualityPlan(Contract):
    """What to find out about each load group's weights beside its speed.

    `text`: `shipped`, or a plain text file below EFFILLM_MODEL_ROOT. `tokens`: how many of its tokens are scored at most.
    `agreement`: compare each next-token distribution with the unquantized model's. `tasks`: tasks of lm-evaluation-harness,
    of which `task_examples` examples each are asked.
    """

    text: _Path = SHIPPED
    tokens: Annotated[int, Field(strict=True, ge=MIN_TOKENS, le=1_000_000)] = 4096
    agreement: bool = True
    tasks: Annotated[tuple[_Task, ...], Field(max_length=20)] = ()
    task_examples: Annotated[int, Field(strict=True, ge=1, le=100_000)] = 100


class Losses(Contract):
    """Negative log likelihood of a text, natural logarithm: the mean of each block of consecutive tokens."""

    nll: Annotated[tuple[float, ...], Field(min_length=1)]
    tokens: Annotated[tuple[int, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _paired(self) -> Losses:
        if len(self.nll) != len(self.tokens) or min(self.tokens) < 1:
            raise ValueError("every block has one mean and at least one token")
        return self


class Agreement(Contract):
    """Next-token distributions beside those of the unquantized model `reference`, given the same true context.

    `agreeing` of `positions` have the same most probable token. `mean_kl` is the mean of KL(reference || this) in nats over
    `kl_positions` evenly spaced positions, `kl_se` its standard error.
    """

    reference: str
    positions: Annotated[int, Field(ge=1)]
    agreeing: Annotated[int, Field(ge=0)]
    kl_positions: Annotated[int, Field(ge=1)]
    mean_kl: float
    kl_se: float
    losses: Losses


class TaskScore(Contract):
    """One metric of one task by lm-evaluation-harness."""

    task: str
    metric: str
    value: float
    stderr: float | None = None
    examples: int | None = None


class TimeShares(Contract):
    """By a profiler, outside of anything that is measured: the share of time that turning codes back into numbers takes, 0..1.

    0 where kernels do so inside their product: then `decode_operations`, the largest shares by name, tells which run.
    """

    prompt_tokens: int
    decode_steps: int
    prefill_dequantization: float
    decode_dequantization: float
    decode_operations: dict[str, float] = Field(default_factory=dict)


class Quality(Contract):
    """What was found about one loaded model. Whatever is missing has its reason in `notes`.

    Windows of `window` tokens advance by `stride`: every token is scored once, all but the first window's with at least
    `window - stride` tokens before it.
    """

    text: str
    text_digest: str | None = None
    window: int | None = None
    stride: int | None = None
    losses: Losses | None = None
    agreement: Agreement | None = None
    tasks: tuple[TaskScore, ...] = ()
    shares: TimeShares | None = None
    notes: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def tokens(self) -> int:
        """How many tokens were scored."""
        return sum(self.losses.tokens) if self.losses else 0
