"""From the model a user names to its facts: the catalog first, then a folder below the model root, then the hub."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from effillm_server.catalog import folder, load
from effillm_server.catalog.doors import is_allowed
from effillm_server.catalog.facts import ModelFacts, model_key
from effillm_server.catalog.hub import HubClient, HubModel, HubRefused, HubUnreachable
from effillm_server.contract.sweep import ModelChoice, Weights
from effillm_server.errors import BadInput

__all__ = ["HubClient", "resolve", "resolve_all"]


def resolve(
    choice: ModelChoice, model_root: Path | None = None, hub: HubClient | None = None, allow: Sequence[str] = ("*",)
) -> ModelFacts:
    """Facts of the chosen model, pinned to a hub revision where it is read from there and the hub answers.

    `allow`: patterns of what may come from the hub. Raises BadInput that says which places were tried, what each answered
    and what to do.
    """
    known = load().models.get(choice.id)
    local = folder.find(choice.id, model_root) if model_root is not None else None
    comes_from_hub = local is None and (known is None or choice.weights is Weights.PRETRAINED)
    if comes_from_hub and not is_allowed(choice.id, allow):
        raise BadInput(
            f"model {choice.id!r} is not among those that this server loads from the hub ({', '.join(allow) or 'none'}): choose "
            "one of them, or ask its operator to name it in EFFILLM_ALLOW_MODELS",
            field="models",
        )
    if known is not None:
        return known if local is not None or choice.weights is Weights.SYNTHETIC else _pinned(known, choice, hub)
    if local is not None:
        return _local(choice.id, local)
    return _hub(choice, model_root, hub)


def resolve_all(
    choices: Iterable[ModelChoice],
    model_root: Path | None = None,
    hub: HubClient | None = None,
    allow: Sequence[str] = ("*",),
) -> dict[str, ModelFacts]:
    """Facts of every choice of a sweep by `model_key`; pretrained ones decide the pin where both kinds are chosen."""
    ordered = sorted(choices, key=lambda choice: choice.weights is Weights.PRETRAINED)
    return {model_key(choice): resolve(choice, model_root, hub, allow) for choice in ordered}


def _pinned(known: ModelFacts, choice: ModelChoice, hub: HubClient | None) -> ModelFacts:
    """The catalog has the architecture, so a hub that is silent costs only the pin; the worker may have the files cached."""
    if hub is None:
        return known
    try:
        return known.model_copy(update={"revision": hub.revision(choice.id, choice.revision)})
    except HubUnreachable:
        return known
    except HubRefused as error:
        if choice.revision is None:
            return known
        raise BadInput(f"model {choice.id!r}: revision {choice.revision!r}: {error}", field="models") from None


def _local(model: str, path: Path) -> ModelFacts:
    config = folder.config(path)
    count = None if "quantization_config" in config else folder.parameters(path)
    return _facts(model, config, count, None, "the model folder's config.json and weight headers")


def _hub(choice: ModelChoice, model_root: Path | None, hub: HubClient | None) -> ModelFacts:
    if hub is None:
        raise _nowhere(choice.id, model_root, "the hub was not asked")
    if choice.id.count("/") > 1:
        raise _nowhere(choice.id, model_root, f"{hub.endpoint} has no ids with more than one '/'")
    try:
        found: HubModel = hub.model(choice.id, choice.revision)
    except HubRefused as error:
        raise _nowhere(choice.id, model_root, str(error)) from None
    source = f"{hub.endpoint}/{choice.id} at {found.revision}"
    return _facts(choice.id, found.config, found.parameters, found.revision, source)


def _facts(model: str, config: dict[str, Any], count: int | None, revision: str | None, source: str) -> ModelFacts:
    """Facts from a transformers config, whose families name the same thing differently."""
    if not isinstance(config.get("model_type"), str):
        raise BadInput(
            f"model {model!r}: its config.json names no model_type; is it a transformers model?", field="models"
        )
    heads = _number(config, "num_attention_heads", "n_head", "num_heads")
    hidden = _number(config, "hidden_size", "n_embd", "d_model")
    head_dim = _number(config, "head_dim") or (hidden // heads if hidden and heads else None)
    return ModelFacts(
        id=model,
        family=config["model_type"],
        label=model.rpartition("/")[2],
        parameters=count,
        context_window=_number(config, "max_position_embeddings", "n_positions", "seq_length", "max_seq_len"),
        # `auto_map` names code to download and run: it is dropped, so that nothing downstream can follow it.
        architecture={key: value for key, value in config.items() if key != "auto_map"},
        layers=_number(config, "num_hidden_layers", "n_layer", "n_layers", "num_layers"),
        kv_heads=_number(config, "num_key_value_heads", "n_head_kv") or heads,
        head_dim=head_dim,
        revision=revision,
        source=source,
    )


def _number(config: dict[str, Any], *names: str) -> int | None:
    values = (config.get(name) for name in names)
    return next((v for v in values if isinstance(v, int) and not isinstance(v, bool) and v > 0), None)


def _nowhere(model: str, model_root: Path | None, hub_said: str) -> BadInput:
    near = difflib.get_close_matches(model, load().models, n=1, cutoff=0.7)
    suggestion = f" Did you mean {near[0]!r}?" if near else ""
    root = (
        "EFFILLM_MODEL_ROOT is not set"
        if model_root is None
        else "no such folder with a config.json below EFFILLM_MODEL_ROOT"
    )
    return BadInput(
        f"model {model!r} was found nowhere.{suggestion} Tried: the catalog (not in it), the model root ({root}), "
        f"the hub ({hub_said}). Correct the id, put the folder below EFFILLM_MODEL_ROOT, or see that the hub answers",
        field="models",
    )
