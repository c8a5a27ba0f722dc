"""How much of its rate a lab keeps while its way to the database is disturbed, and how soon work is picked up unannounced."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime

import httpx
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
# Of its own rate, this soon after the database is back.
FULL_RATE = 0.9
FULL_RATE_WITHIN_S = 30.0
AWAY_S = 5.0
LOST = "SELECT count(*) FROM attempt WHERE reason = 'lost'"
# The last statement of any fleet's session, and the last sign of life of the device that has been silent for longest.
FLEET_SPOKE = (
    "SELECT max(state_change), clock_timestamp() FROM pg_stat_activity WHERE application_name = 'effillm-fleet'"
)
DEVICE_SPOKE = "SELECT min(last_seen), clock_timestamp() FROM device WHERE declared"
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


def tend_for(lab: Lab, seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        lab.tend()
        time.sleep(0.05)


def feed(lab: Lab, client: Client) -> None:
    """Cells for a few minutes on every device, and all of them at it."""
    client.send(Definitions(1, CLASSES).alike(CLASSES, 600))
    leased = "SELECT count(*) FROM lease_device"
    lab.wait("every device measures", lambda: lab.database.scalar(leased) == len(lab.device_ids()), 60)
    began = lab.database.scalar(ENDED)
    lab.wait("they are at their pace", lambda: lab.database.scalar(ENDED) > began + 15, 60)


def longest_silences_s(lab: Lab, seconds: float) -> dict[str, float]:
    """The longest time for which the fleet asked nothing, a device gave no sign of life, and a request waited for its answer."""
    worst = {"fleet": 0.0, "device": 0.0}
    with ThreadPoolExecutor(1) as pool:
        until = time.monotonic() + seconds
        waited = pool.submit(_longest_answer_s, lab.api, until)
        spoke: dict[str, datetime] = {}
        while time.monotonic() < until:
            lab.tend()
            for who, question in (("fleet", FLEET_SPOKE), ("device", DEVICE_SPOKE)):
                at, now = lab.database.read(question)[0]
                # A session that has ended takes its last statement with it.
                spoke[who] = max(spoke.get(who, at or now), at or spoke.get(who, now))
                worst[who] = max(worst[who], (now - spoke[who]).total_seconds())
            time.sleep(0.2)
        return worst | {"answer of /readyz": waited.result()}


def _longest_answer_s(api: str, until: float) -> float:
    worst = 0.0
    while time.monotonic() < until:
        began = time.monotonic()
        httpx.get(f"{api}/readyz", timeout=60)
        worst = max(worst, time.monotonic() - began)
        time.sleep(0.1)
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


def test_the_full_rate_is_back_within_half_a_minute_of_the_database_and_no_attempt_is_lost(
    at_work: tuple[Lab, Client],
) -> None:
    lab, client = at_work
    feed(lab, client)
    watch = Watch(lab)
    before, lost = rate(lab, watch), lab.database.scalar(LOST)
    watch.close()
    lab.database.stop("immediate")
    tend_for(lab, AWAY_S)
    lab.database.start()
    back = time.monotonic()
    tend_for(lab, FULL_RATE_WITHIN_S - MEASURED_S)
    watch = Watch(lab)
    after = rate(lab, watch)
    watch.close()
    told = (
        f"{before:.2f} per second before, {after:.2f} in the {MEASURED_S:g} s to {time.monotonic() - back:.0f} s after"
    )
    print(f"Postgres away for {AWAY_S:g} s: {told}")
    assert lab.database.scalar(LOST) == lost
    assert after >= FULL_RATE * before, told


def test_no_thread_of_actor_fleet_or_api_hangs_on_a_half_open_path(at_work: tuple[Lab, Client]) -> None:
    lab, _ = at_work
    for name in ("c", "api", *lab.fleets):
        lab.proxy.strand(name)
    silences = longest_silences_s(lab, 18.0)
    told = ", ".join(f"{who} {seconds:.1f} s" for who, seconds in silences.items())
    print(f"longest silence on half-open paths: {told}")
    assert max(silences.values()) < LONGEST_SILENCE_S, told
    # They did stand still: a path that was not cut shows nothing.
    assert min(silences.values()) > 5.0, told


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
