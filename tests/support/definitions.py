"""Sweep definitions for tests: a small valid one, with keys replaced at will."""

from __future__ import annotations

from typing import Any

from effillm_server.contract.sweep import SweepDefinition


def document(**changes: Any) -> dict[str, Any]:
    """The smallest definition a user can write, with `changes`; a change to None drops the key."""
    base: dict[str, Any] = {
        "name": "test",
        "models": ["facebook/opt-125m"],
        "hardware": ["cpu"],
        "quantization": ["fp32"],
    }
    return {key: value for key, value in (base | changes).items() if value is not None}


def definition(**changes: Any) -> SweepDefinition:
    """The validated form of `document`."""
    return SweepDefinition.model_validate(document(**changes))
