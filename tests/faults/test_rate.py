"""How much of its rate a lab keeps while its way to the database is disturbed, and how soon work is picked up unannounced."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import psycopg2
import pytest

from tests.support.faults import invariants
from tests.support.faults.campaign import Outcome, come_to_rest
from tests.support.faults.lab import Lab, Plan, lab
from tests.support.faults.workload import CLASSES, Client, Definitions

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600), pytest.mark.filterwarnings("ignore::ResourceWarning")]

SMALL = Plan({"head": (), "a": ("t4:2",), "b": ("a100:2",), "c": ("rtx-4090:1",)}, fleets=1)
KEPT = 0.8
MEASURED_S = 20.0
LONGEST_SILENCE_S = 15.0
ENDED = "SELECT count(*) FROM attempt WHERE reported AND outcome = 'measured'"


@pytest.fixture(scope="module")
def at_work() -> Iterator[tuple[Lab, Client]]:
    """A lab whose devices measure cells of one kind."""
    with lab(SMALL) as built:
        client = Client(built.api)
        try:
            yield built, client
        finally:
            client.close()


class Watch:
    """A connection of its own to count by: where none is to be had any more, this one is there already."""

    def __init__(self, lab: Lab) -> None:
        self._url = lab.database.url
        self._connection = psycopg2.connect(self._url)

    def ended(self) -> int:
        """Measurements so far."""
        try:
            return self._ask()
        except psycopg2.Error:
            self._connection = psycopg2.connect(self._url, connect_timeout=5)
            return self._ask()

    def close(self) -> None:
        self._connection.close()

    def _ask(self) -> int:
        self._connection.autocommit = True
        with self._connection.cursor() as cursor:
            cursor.execute(ENDED)
            return int(cursor.fetchone()[0])  # type: ignore[index]


def rate(lab: Lab, watch: Watch, during: Callable[[], object] = lambda: None) -> float:
    """Measurements per second, with `during` done once a second."""
    began, before = time.monotonic(), watch.ended()
    at = began
    while time.monotonic() - began < MEASURED_S:
        lab.tend()
        if time.monotonic() >= at:
            during()
            at += 1.0
        time.sleep(0.05)
    return (watch.ended() - before) / (time.monotonic() - began)


def feed(lab: Lab, client: Client) -> None:
    """Cells for a few minutes on every device, and all of them at it."""
    client.send(Definitions(1, CLASSES).alike(CLASSES, 600))
    leased = "SELECT count(*) FROM lease_device"
    lab.wait("every device measures", lambda: lab.database.scalar(leased) == len(lab.device_ids()), 60)
    began = lab.database.scalar(ENDED)
    lab.wait("they are at their pace", lambda: lab.database.scalar(ENDED) > began + 15, 60)


def longest_silence_s(lab: Lab, seconds: float) -> float:
    """The longest time for which a device gave no sign of life."""
    worst, until = 0.0, time.monotonic() + seconds
    while time.monotonic() < until:
        lab.tend()
        age = "SELECT max(extract(epoch FROM clock_timestamp() - last_seen)) FROM device WHERE declared"
        worst = max(worst, float(lab.database.scalar(age)))
        time.sleep(0.2)
    return worst


def test_the_rate_is_kept_while_sessions_are_cut_connections_are_out_and_paths_are_half_open(
    at_work: tuple[Lab, Client],
) -> None:
    lab, client = at_work
    feed(lab, client)
    watch = Watch(lab)
    # Each disturbance between two undisturbed times: a machine with other work keeps no pace for minutes.
    undisturbed = [rate(lab, watch)]
    disturbed = {"sessions cut once a second": rate(lab, watch, lab.database.terminate_backends)}
    undisturbed.append(rate(lab, watch))

    held: list[psycopg2.extensions.connection] = []
    with pytest.raises(psycopg2.OperationalError):
        while True:
            held.append(psycopg2.connect(lab.database.url, connect_timeout=5))
    disturbed["connections out"] = rate(lab, watch)
    for one in held:
        one.close()
    undisturbed.append(rate(lab, watch))

    lab.proxy.strand("c")
    disturbed["one node half open"] = rate(lab, watch)
    silence = longest_silence_s(lab, 3.0)
    undisturbed.append(rate(lab, watch))
    watch.close()
    kept = {
        name: during / min(before, after)
        for (name, during), before, after in zip(disturbed.items(), undisturbed, undisturbed[1:], strict=False)
    }
    told = f"undisturbed {', '.join(f'{one:.2f}' for one in undisturbed)} per second; kept " + ", ".join(
        f"{share:.2f} ({name})" for name, share in kept.items()
    )
    print(told)
    assert min(kept.values()) >= KEPT, told
    assert silence < LONGEST_SILENCE_S


def test_work_is_picked_up_within_two_seconds_when_no_notification_arrives(at_work: tuple[Lab, Client]) -> None:
    lab, client = at_work
    for sent in client.sent:
        assert sent.accepted is not None
        client.cancel(sent.accepted.sweep_id)
    come_to_rest(lab, client, Outcome(0), 120)
    definitions = Definitions(2, ("a100",))
    for link in lab.proxy.links.values():
        link.drops_notifications = True
    waits = []
    for _ in range(5):
        sending = client.send(definitions.one_cell("simulated/100"))
        lab.wait("the sweep is measured", lambda s=sending: s.accepted and _first(lab, s.accepted.sweep_id), 30)
        assert sending.accepted is not None
        waits.append(_first(lab, sending.accepted.sweep_id))
        come_to_rest(lab, client, Outcome(0), 60)
    for link in lab.proxy.links.values():
        link.drops_notifications = False
    print("picked up after", [f"{wait:.2f} s" for wait in waits])
    assert max(waits) <= 2.0
    assert invariants.held_locks(lab.lock_dir) == []


def _first(lab: Lab, sweep_id: str) -> float:
    """Seconds from the sweep's storing to its first lease; 0 while there is none."""
    rows = lab.database.read(
        "SELECT extract(epoch FROM a.started_at - s.created_at) FROM sweep s JOIN job j ON j.sweep_id = s.id"
        " JOIN attempt a ON a.job_id = j.id WHERE s.id = :s ORDER BY a.started_at LIMIT 1", s=sweep_id,
    )  # fmt: skip
    return float(rows[0][0]) if rows else 0.0
