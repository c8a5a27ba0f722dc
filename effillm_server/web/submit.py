"""Submitting a sweep from the page: by form or as YAML, seen as a preview before anything is stored."""

from __future__ import annotations

import re
import secrets
from collections import Counter
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from starlette.responses import HTMLResponse, RedirectResponse

from effillm_server.api import sweeps as api
from effillm_server.api.auth import Caller, Submitter
from effillm_server.api.services import Served, Services
from effillm_server.api.views import PreviewView
from effillm_server.contract.parse import parse_definition
from effillm_server.contract.sweep import SYNTHETIC_WORKLOAD, Engine, SweepDefinition, Weights
from effillm_server.errors import BadInput, Conflict, NotFound, Unavailable
from effillm_server.ledger import queries
from effillm_server.lifecycle import DeviceState
from effillm_server.web import forms, words
from effillm_server.web.access import Fields, Posted, first
from effillm_server.web.templating import page

FORM, YAML = "form", "yaml"
STARTER = """\
name: my-first-sweep
models: [facebook/opt-125m]
hardware: [cpu]
quantization: [fp32, int8]
batch_size: [1, 2, 4, 8]
sequence_length: [128, 512]
generate_tokens: 64
"""
router = APIRouter(tags=["page-submit"], include_in_schema=False)


@dataclass(frozen=True)
class Draft:
    """What was typed, and what came of it."""

    mode: str
    fields: Fields
    text: str
    definition: SweepDefinition | None = None
    errors: dict[str, list[str]] | None = None
    preview: PreviewView | None = None
    estimate: str = ""
    token: str = ""
    notice: str = ""


@router.get("/sweeps/new")
def blank(
    request: Request,
    served: Served,
    who: Submitter,
    mode: Annotated[str, Query(pattern="^(form|yaml)$")] = FORM,
    like: Annotated[str | None, Query(pattern=r"^[A-Za-z0-9_-]{1,64}$")] = None,
) -> HTMLResponse:
    """An empty form, or one filled in like an earlier sweep."""
    if like is None:
        with served.reading() as connection:
            here = sorted(queries.known_hardware(connection))
        return _shown(request, served, who, Draft(mode, forms.DEFAULTS | {"hardware": here[:1] or ["cpu"]}, STARTER))
    earlier = api.view_of(served, who.viewer, like).definition
    text = words.plain_yaml(earlier.model_dump(mode="json", exclude_defaults=True))
    fields = forms.fields_of(earlier)
    # The form has no place for some of what a definition may say.
    is_whole = forms.read(fields).definition == earlier
    return _shown(request, served, who, Draft(mode if is_whole else YAML, fields, text))


@router.post("/sweeps/new")
def posted(request: Request, served: Served, who: Submitter, fields: Posted) -> Response:
    """The preview of what was typed; once that has been seen, the stored sweep."""
    draft = _read(fields)
    if draft.definition is None:
        return _shown(request, served, who, draft, 422)
    try:
        preview = api.preview(served, who, draft.definition)
        is_seen = first(fields, "seen") == forms.digest(draft.definition)
        if is_seen and first(fields, "action") == "store":
            stored = api.submit(served, who, draft.definition, Response(), _token(fields))
            return RedirectResponse(f"/sweeps/{stored.id}", 303)
    except (BadInput, NotFound, Conflict, Unavailable) as error:
        place = error.field if isinstance(error, BadInput) else None
        where = forms.field_of(place) if draft.mode == FORM else ""
        return _shown(request, served, who, _with(draft, errors={where: [str(error)]}), 422)
    is_late = first(fields, "action") == "store" and not is_seen
    notice = "It was changed after the preview, so nothing is stored yet: this is the new preview." if is_late else ""
    shown = _with(
        draft, preview=preview, estimate=_estimate(served, draft.definition, preview), notice=notice,
        token=_token(fields) or secrets.token_urlsafe(16),
    )  # fmt: skip
    return _shown(request, served, who, shown)


def _read(fields: Fields) -> Draft:
    if first(fields, "mode") == YAML:
        text = first(fields, "text").replace("\r\n", "\n")
        try:
            return Draft(YAML, forms.DEFAULTS, text, parse_definition(text))
        except BadInput as error:
            return Draft(YAML, forms.DEFAULTS, text, errors={"": [str(error)]})
    read = forms.read(fields)
    text = "" if read.definition is None else words.plain_yaml(
        read.definition.model_dump(mode="json", exclude_defaults=True)
    )  # fmt: skip
    return Draft(FORM, dict(fields), text or STARTER, read.definition, read.errors)


def _token(fields: Fields) -> str | None:
    """What makes two clicks on one preview one sweep."""
    token = first(fields, "token")
    return token if re.fullmatch(r"[A-Za-z0-9_-]{16,64}", token) else None


def _with(draft: Draft, **changes: Any) -> Draft:
    return Draft(**(vars(draft) | changes))


def _shown(request: Request, served: Services, who: Caller, draft: Draft, status: int = 200) -> HTMLResponse:
    with served.reading() as connection:
        registered = queries.known_hardware(connection)
    hardware = sorted({*served.catalog.hardware, *registered}, key=lambda name: (name not in registered, name))
    return page(
        request, who, "submit.html", status=status, draft=draft, errors=draft.errors or {}, hardware=hardware,
        registered=registered, workloads=[SYNTHETIC_WORKLOAD, *served.catalog.workloads], engines=list(Engine),
        weights=list(Weights), precisions=forms.PRECISIONS, known_models=sorted(served.catalog.models),
        seen=forms.digest(draft.definition) if draft.definition and draft.preview else "",
    )  # fmt: skip


def _estimate(served: Services, definition: SweepDefinition, preview: PreviewView) -> str:
    """How long it may take, in words, with what that stands on."""
    with served.reading() as connection:
        known = queries.served(connection)
        devices = Counter(d.hardware_class for d in queries.devices(connection) if d.state is not DeviceState.LOST)
    each_class = preview.pending / len(definition.hardware)
    seen = [name for name in definition.hardware if name in known]
    unseen = ", ".join(name for name in definition.hardware if name not in known)
    if not seen:
        limit_s = definition.measurement.time_limit_s
        return (
            f"Cannot be told yet: nothing has been measured on {unseen} here. "
            f"Each cell ends after {words.seconds(limit_s)} at the latest."
        )
    # Classes work side by side, and a class that has no device now gets at least one.
    longest_s = max(known[name].seconds * each_class / max(1, devices[name]) for name in seen)
    basis = sum(known[name].jobs for name in seen)
    said = f"About {words.seconds(longest_s)}, by the {basis:,} cells that {', '.join(seen)} ran here so far; other sizes take other times"
    return f"{said}, and nothing is known of {unseen}." if unseen else f"{said}."
