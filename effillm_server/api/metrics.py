"""Figures for Prometheus: the lab's from the ledger, this process's own from its memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from fastapi import APIRouter
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from starlette.responses import Response

from effillm_server.api import examples
from effillm_server.api.auth import Reader
from effillm_server.api.documented import problems, raw
from effillm_server.api.services import Served, Services
from effillm_server.ledger import queries
from effillm_server.ledger.read_figures import device_seconds
from effillm_server.lifecycle import DeviceState

router = APIRouter(tags=["health"])


@router.get(
    "/metrics",
    summary="Figures for Prometheus",
    response_class=Response,
    responses={**problems(), 200: raw("text/plain", examples.METRICS, "the text format of Prometheus")},
)
def metrics(served: Served, who: Reader) -> Response:
    """Totals come from counters, so that a scrape costs the same however many jobs there are. Needs a key where others do."""
    registry = CollectorRegistry()
    registry.register(_Fixed([*_lab(served), *_own(served)]))
    text = generate_latest(registry) + generate_latest(served.metrics.registry)
    return Response(text, media_type=CONTENT_TYPE_PLAIN_0_0_4)


@dataclass(frozen=True, eq=False)
class _Fixed:
    """What has been read already, in the shape of a collector."""

    families: list[Metric]

    def collect(self) -> Iterable[Metric]:
        return self.families

    def describe(self) -> Iterable[Metric]:
        return self.families


def _lab(served: Services) -> Iterator[Metric]:
    """What every process reads alike."""
    with served.reading() as connection:
        counts = queries.counts(connection)
        waiting = queries.waiting_classes(connection)
        age_s = queries.queue_age_s(connection)
        devices = Counter((device.hardware_class, device.state) for device in queries.devices(connection))
        seconds = device_seconds(connection)
    yield _gauge("effillm_jobs", "Jobs by state.", ("state",), {(str(s),): n for s, n in counts.jobs.items()})
    yield _gauge(
        "effillm_jobs_waiting", "Pending jobs by the hardware class they wait for.", ("hardware",),
        {(hardware,): jobs for hardware, jobs in waiting.items()},
    )  # fmt: skip
    yield _gauge("effillm_queue_age_seconds", "Age of the oldest sweep with a pending job.", (), {(): age_s})
    # Every state of a class that is there, so that a graph falls to zero instead of ending.
    classes = sorted({hardware for hardware, _ in devices})
    yield _gauge(
        "effillm_devices", "Devices by hardware class and state.", ("hardware", "state"),
        {(hardware, str(state)): devices[hardware, state] for hardware in classes for state in DeviceState},
    )  # fmt: skip
    yield _counter(
        "effillm_device_seconds", "Device time that jobs have taken, by hardware class.", ("hardware",),
        {(hardware,): value for hardware, value in seconds.items()},
    )  # fmt: skip
    yield _counter(
        "effillm_rejected_outcomes", "Outcomes refused because their lease was lost.", (),
        {(): counts.rejected_outcomes},
    )  # fmt: skip
    yield _counter(
        "effillm_rejected_renewals", "Renewals refused because their sender did not hold the lease.", (),
        {(): counts.rejected_renewals},
    )  # fmt: skip


def _own(served: Services) -> Iterator[Metric]:
    """What only this process knows."""
    yield _counter(
        "effillm_leases_reaped", "Expired leases this process took back.", (), {(): served.tally.leases_reaped}
    )
    yield _counter(
        "effillm_unchanged_requests", "Requests to cancel or retry that changed nothing: asked again, or refused.",
        ("action",), served.tally.unchanged.counts,
    )  # fmt: skip
    yield _gauge("effillm_event_subscribers", "Open event streams of this process.", (), {(): served.hub.subscribers})


Values = Mapping[tuple[str, ...], float]


def _gauge(name: str, text: str, labels: Sequence[str], values: Values) -> Metric:
    family = GaugeMetricFamily(name, text, labels=labels)
    for key, value in values.items():
        family.add_metric(key, value)
    return family


def _counter(name: str, text: str, labels: Sequence[str], values: Values) -> Metric:
    family = CounterMetricFamily(name, text, labels=labels)
    for key, value in values.items():
        family.add_metric(key, value)
    return family
