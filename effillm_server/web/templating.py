"""Templates to pages: everything escaped, nothing inline, and a policy that would not run it if it were."""

from __future__ import annotations

from functools import cache
from typing import Any
from urllib.parse import urlencode

from fastapi import Request
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from starlette.responses import HTMLResponse

from effillm_server.api.auth import Caller, Scope, csrf_token
from effillm_server.lifecycle import DeviceState, JobState
from effillm_server.web import words
from effillm_server.web.assets import address

POLICY = "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
HEADERS = {"Content-Security-Policy": POLICY}
# What a page listens for on the event stream: every kind that the ledger tells of.
KINDS = (
    *(f"job_{state}" for state in JobState),
    *(f"device_{state}" for state in DeviceState),
    "jobs_implied", "sweep_created", "sweep_finished", "sweep_cancelled", "sweep_retried", "device_registered",
    "device_undrained",
)  # fmt: skip
FILTERS = {
    "number": words.number, "seconds": words.seconds, "size": words.size, "percent": words.percent, "state": words.state,
    "reason": words.reason, "tally": words.tally, "ago": words.ago, "moment": words.moment, "short": words.short,
    "cell": words.cell, "yaml": words.plain_yaml, "label": words.label,
}  # fmt: skip


@cache
def environment() -> Environment:
    """Jinja with our filters; a name that a template misspells is an error, not a blank."""
    made = Environment(
        loader=PackageLoader("effillm_server.web"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    made.filters |= FILTERS
    made.globals |= {"asset": address, "valued": words.value, "KINDS": " ".join(KINDS)}
    return made


def page(request: Request, who: Caller | None, template: str, *, status: int = 200, **context: Any) -> HTMLResponse:
    """The rendered template as an answer to `who`; None: somebody who has not signed in."""

    def here(**changes: Any) -> str:
        """This address with other parameters; None drops one."""
        return address_with(request, changes)

    shown = {
        "path": request.url.path, "here": here, "who": who, "csrf": csrf_token(request) if who else "",
        "may_submit": who is not None and who.may(Scope.SUBMIT), "is_admin": who is not None and who.may(Scope.ADMIN),
        "live": None,
    } | context  # fmt: skip
    return HTMLResponse(environment().get_template(template).render(shown), status, HEADERS)


def part(template: str, **context: Any) -> Markup:
    """A part of a page that is nobody's in particular, rendered."""
    return Markup(environment().get_template(template).render(context))  # noqa: S704 (the template has escaped it)


def address_with(request: Request, changes: dict[str, Any]) -> str:
    """Path and query of this request with parameters replaced; None drops one, a list repeats it."""
    kept = [(name, value) for name, value in request.query_params.multi_items() if name not in changes]
    for name, value in changes.items():
        values = value if isinstance(value, list | tuple) else [value]
        kept += [(name, str(one)) for one in values if one is not None]
    return f"{request.url.path}?{urlencode(kept)}" if kept else request.url.path
