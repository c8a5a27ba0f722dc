"""Whether the process lives, whether it can serve, and its figures for Prometheus."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from fastapi import APIRouter
from starlette.responses import PlainTextResponse

from effillm_server.api import examples
from effillm_server.api.documented import problems, raw
from effillm_server.api.services import Served, Services
from effillm_server.api.views import HealthView
from effillm_server.errors import Unavailable
from effillm_server.ledger import queries

router = APIRouter(tags=["health"])
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Sample = tuple[Mapping[str, str], float]
Family = tuple[str, str, str, list[Sample]]


@router.get("/healthz", summary="Whether the process lives", responses=problems())
def alive() -> HealthView:
    """Touches nothing: a database that is away is no reason to restart this process."""
    return HealthView(status="ok")


@router.get("/readyz", summary="Whether requests can be served", responses=problems())
def ready(served: Served) -> HealthView:
    """Asks the database; 503 while it does not answer or has another schema."""
    with served.reading() as connection:
        if not queries.ready(connection):
            raise Unavailable("the database's schema is not this version's: restart this process to migrate it")
    return HealthView(status="ready")


@router.get(
    "/metrics",
    summary="Figures for Prometheus",
    response_class=PlainTextResponse,
    responses={**problems(), 200: raw("text/plain", examples.METRICS, "the text format of Prometheus")},
)
def metrics(served: Served) -> PlainTextResponse:
    """Totals come from counters, so that a scrape costs the same however many jobs there are."""
    return PlainTextResponse("".join(_text(*family) for family in _families(served)), media_type=METRICS_TYPE)


def _families(served: Services) -> list[Family]:
    with served.reading() as connection:
        counts = queries.counts(connection)
        waiting = queries.waiting_classes(connection)
        age_s = queries.queue_age_s(connection)
        devices = Counter((device.hardware_class, device.state) for device in queries.devices(connection))
    jobs: list[Sample] = [({"state": state}, jobs) for state, jobs in counts.jobs.items()]
    present: list[Sample] = [
        ({"hardware": hardware, "state": state}, count) for (hardware, state), count in sorted(devices.items())
    ]
    queued: list[Sample] = [({"hardware": hardware}, jobs) for hardware, jobs in waiting.items()]
    return [
        ("effillm_jobs", "gauge", "Jobs by state.", jobs),
        ("effillm_jobs_waiting", "gauge", "Pending jobs by the hardware class they wait for.", queued),
        ("effillm_queue_age_seconds", "gauge", "Age of the oldest sweep with a pending job.", [({}, age_s)]),
        ("effillm_devices", "gauge", "Devices by hardware class and state.", present),
        (
            "effillm_leases_reaped_total", "counter", "Expired leases this process took back.",
            [({}, served.tally.leases_reaped)],
        ),
        (
            "effillm_rejected_outcomes_total", "counter", "Outcomes refused because their lease was lost.",
            [({}, counts.rejected_outcomes)],
        ),
        ("effillm_event_subscribers", "gauge", "Open event streams of this process.", [({}, served.hub.subscribers)]),
    ]  # fmt: skip


def _text(name: str, kind: str, help_text: str, samples: Iterable[Sample]) -> str:
    lines = [f"# HELP {name} {help_text}", f"# TYPE {name} {kind}"]
    lines += [f"{name}{_labels(labels)} {_number(value)}" for labels, value in samples]
    return "\n".join(lines) + "\n"


def _labels(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    escaped = (f'{name}="{_escaped(value)}"' for name, value in labels.items())
    return "{" + ",".join(escaped) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(value)
