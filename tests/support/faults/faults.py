"""Every way the lab is broken: each function does it once and says how its survival is recognised.

`dice` decides target and dose. A fault returns None when there is nothing it could hit right now. `FAULTS` names them with
how often a full campaign injects each, and whether it wants the lab for itself.
"""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.support.faults import tree
from tests.support.faults.lab import FAKETIME, Lab
from tests.support.faults.recovery import (
    Recovery,
    all_back,
    attempt_ended,
    device_back,
    devices,
    fleet_serves,
    is_serving,
    lease_of,
    now,
)
from tests.support.faults.workload import Client, Definitions


@dataclass
class Field:
    """What faults act on, and what is taken by one that is not survived yet."""

    lab: Lab
    client: Client
    definitions: Definitions
    dice: random.Random
    taken: set[str]

    def worker(self) -> tree.Worker | None:
        """A measuring declared device nobody is at."""
        found = tree.workers(self.lab.lock_dir)
        names = [name for name in self.lab.device_ids() if name in found and not {name, self.node_of(name)} & self.taken]
        return found[self.dice.choice(names)] if names else None

    def node(self) -> str | None:
        """A node nobody is at, nor at one of its devices."""
        names = [n for n in self.lab.nodes if not {n, *self.lab.device_ids(n)} & self.taken and self.lab.kept[n].is_running]
        return self.dice.choice(names) if names else None

    def node_of(self, device: str) -> str:
        return next(name for name in self.lab.nodes if device in self.lab.device_ids(name))


def child_killed(on: Field) -> Recovery | None:
    if (worker := on.worker()) is None:
        return None
    return _worker_killed(on, "child killed", worker, worker.child, None)


def supervisor_killed(on: Field) -> Recovery | None:
    if (worker := on.worker()) is None:
        return None
    return _worker_killed(on, "supervisor killed", worker, worker.supervisor, None)


def actor_killed(on: Field) -> Recovery | None:
    if (worker := on.worker()) is None:
        return None
    boot = devices(on.lab)[worker.device].boot_id
    return _worker_killed(on, "actor killed", worker, worker.actor, boot)


def _worker_killed(
    on: Field, name: str, worker: tree.Worker, victim: tree.Process, boot: str | None
) -> Recovery:
    lab, device, since = on.lab, worker.device, now()
    lease = lease_of(lab, device)
    victim.send(signal.SIGKILL)
    doomed = (worker.child,) if boot is None else (worker.supervisor, worker.child)
    looks = [lambda: attempt_ended(lab, lease), lambda: device_back(lab, device, since, boot)]
    return Recovery(name, looks, frozenset({device}), doomed=doomed)


def actor_stopped(on: Field) -> Recovery | None:
    """SIGSTOP for longer than a lease lives, then SIGCONT: its late report meets whatever became of the job."""
    if (worker := on.worker()) is None:
        return None
    return _stopped(on, "actor stopped", worker.actor, [worker.device], on.dice.uniform(1.3, 2.5) * on.lab.plan.ttl_s)


def raylet_stopped(on: Field) -> Recovery | None:
    node = on.node()
    raylet = None if node is None else _raylet(on.lab, node)
    if node is None or raylet is None:
        return None
    return _stopped(on, "raylet stopped", raylet, on.lab.device_ids(node), on.dice.uniform(1.0, 2.5) * on.lab.plan.ttl_s)


def _stopped(on: Field, name: str, victim: tree.Process, names: list[str], seconds: float) -> Recovery:
    lab = on.lab
    victim.send(signal.SIGSTOP)
    recovery = Recovery(name, [], frozenset(names))

    def go_on() -> None:
        since = now()
        victim.send(signal.SIGCONT)
        recovery.heal()
        recovery.looks.append(lambda: all_back(lab, names, since))

    recovery.looks.append(recovery.is_healed)
    lab.later(seconds, go_on)
    return recovery


def raylet_killed(on: Field) -> Recovery | None:
    return _raylet_killed(on, "raylet killed", as_zombie=False)


def raylet_zombie(on: Field) -> Recovery | None:
    """Its parent does not reap it: the process is dead and its entry still there."""
    return _raylet_killed(on, "raylet killed, left as a zombie", as_zombie=True)


def _raylet_killed(on: Field, name: str, *, as_zombie: bool) -> Recovery | None:
    node = on.node()
    raylet = None if node is None else _raylet(on.lab, node)
    if node is None or raylet is None:
        return None
    if as_zombie:
        parent = tree.Process.of(tree.table()[raylet.pid][0])
        if parent is not None:
            parent.send(signal.SIGSTOP)
            on.lab.later(on.dice.uniform(4, 8), lambda: parent.send(signal.SIGCONT))
    recovery = _node_down(on, name, [node])
    raylet.send(signal.SIGKILL)
    return recovery


def node_killed(on: Field) -> Recovery | None:
    """Everything on the node at once, as when its power goes."""
    node = on.node()
    if node is None:
        return None
    recovery = _node_down(on, "node killed", [node])
    _power_off(on, node, on.dice.uniform(0.5, 6))
    return recovery


def most_nodes_killed(on: Field) -> Recovery | None:
    recovery = _node_down(on, "all nodes but one and the head killed", on.lab.nodes[1:])
    for node in on.lab.nodes[1:]:
        _power_off(on, node, on.dice.uniform(0.5, 4))
    return recovery


def head_killed(on: Field) -> Recovery | None:
    """Ray's head goes with its node; a blank one comes up at the same address."""
    head = on.lab.head
    recovery = _node_down(on, "Ray head killed", on.lab.nodes)
    recovery.touches |= {head}
    recovery.limit_s = 300
    lab, since = on.lab, now()
    recovery.looks.append(lambda: is_serving(lab, since))
    _power_off(on, head, 1.0)
    return recovery


def _power_off(on: Field, node: str, seconds: float) -> None:
    tree.kill_at_once(tree.below(on.lab.kept[node].pid))
    on.lab.hold(node, seconds)


def _node_down(on: Field, name: str, nodes: list[str]) -> Recovery:
    """What follows is expected of every device of these nodes: back under a new actor."""
    lab, since = on.lab, now()
    names = [device for node in nodes for device in lab.device_ids(node)]
    boots = {device: row.boot_id for device, row in devices(lab).items()}
    children = [worker for device, worker in tree.workers(lab.lock_dir).items() if device in names]
    doomed = [process for worker in children for process in (worker.actor, worker.supervisor, worker.child)]
    return Recovery(
        name, [lambda: all_back(lab, names, since, boots)], frozenset({*nodes, *names}), 150.0, doomed
    )


def fleet_killed(on: Field) -> Recovery | None:
    leader = on.lab.active_fleet()
    if leader is None:
        return None
    os.kill(on.lab.kept[leader].pid, signal.SIGKILL)
    on.lab.hold(leader, on.dice.uniform(0, 3))
    lab = on.lab
    looks = [lambda: lab.active_fleet() not in (None, leader), lambda: fleet_serves(lab)]
    if len(lab.fleets) == 1:
        looks = [lambda: fleet_serves(lab)]
    return Recovery("active fleet killed", looks, frozenset({"fleet"}))


def fleets_killed(on: Field) -> Recovery | None:
    lab = on.lab
    for name in lab.fleets:
        if lab.kept[name].is_running:
            os.kill(lab.kept[name].pid, signal.SIGKILL)
    return Recovery("both fleets killed", [lambda: fleet_serves(lab)], frozenset({"fleet"}))


def fleet_stopped(on: Field) -> Recovery | None:
    """The leader sleeps and keeps the lock; when it wakes it may have been replaced."""
    leader = on.lab.active_fleet()
    if leader is None:
        return None
    victim = tree.Process.of(on.lab.kept[leader].pid)
    assert victim is not None
    lab = on.lab
    if on.dice.random() < 0.5:
        lab.later(1.0, lambda: _end_leading_session(lab))
    recovery = _stopped(on, "active fleet stopped", victim, [], on.dice.uniform(2, 8))
    recovery.touches = frozenset({"fleet"})
    recovery.looks.append(lambda: fleet_serves(lab))
    return recovery


def _end_leading_session(lab: Lab) -> None:
    """The lock goes over to the other fleet while this one believes that it leads."""
    lab.database.read("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND granted")


def api_killed(on: Field) -> Recovery | None:
    """At a random moment of storing a sweep; its client asks again with its key until it has an answer."""
    if on.client.is_busy or not on.lab.kept["api"].is_running:
        return None
    lab, sending = on.lab, on.client.send(on.definitions.ordinary())
    sending.begun.wait(5)
    recovery = Recovery("API killed while storing a sweep", [], frozenset({"api"}))

    def kill() -> None:
        if lab.kept["api"].is_running:
            os.kill(lab.kept["api"].pid, signal.SIGKILL)
        recovery.heal()

    recovery.looks += [recovery.is_healed, sending.done.is_set]
    lab.later(on.dice.uniform(0, 0.4), kill)
    return recovery


def database_restarted(on: Field) -> Recovery | None:
    how = on.dice.choice(("fast", "immediate", "killed"))
    return _database_away(on, f"Postgres restarted ({how})", how, 0.0)


def database_away(on: Field) -> Recovery | None:
    how = on.dice.choice(("fast", "immediate", "killed"))
    return _database_away(on, "Postgres away for seconds", how, on.dice.uniform(3, 12))


def _database_away(on: Field, name: str, how: str, seconds: float) -> Recovery:
    lab = on.lab
    recovery = Recovery(name, [], frozenset({"database"}), 120)

    def back() -> None:
        lab.database.start()
        since = now()
        recovery.heal()
        recovery.looks.append(lambda: is_serving(lab, since))

    lab.database.stop(how)
    recovery.looks.append(recovery.is_healed)
    lab.later(seconds, back)
    return recovery


def backends_terminated(on: Field) -> Recovery | None:
    """Every session, once a second, five times."""
    lab = on.lab
    recovery = _for_a_while(on, "backends terminated once a second", 5.0, lambda: None, lambda: None)
    for second in range(5):
        lab.later(second, lambda: lab.database.terminate_backends() and None)
    return recovery


def connections_exhausted(on: Field) -> Recovery | None:
    import psycopg2

    lab = on.lab
    held = []
    try:
        while len(held) < 400:
            held.append(psycopg2.connect(lab.database.url, connect_timeout=5))
    except psycopg2.OperationalError:
        pass
    lab.database.engine.dispose()
    return _for_a_while(on, "connections exhausted", 5.0, lambda: None, lambda: [one.close() for one in held])


def answers_lost(on: Field) -> Recovery | None:
    """One commit of ten succeeds and its caller never hears of it, everywhere."""

    def share(of: float) -> None:
        for link in on.lab.proxy.links.values():
            link.ambiguous_share = of

    return _for_a_while(
        on, "commit succeeded, answer lost (1 of 10)", on.dice.uniform(6, 12), lambda: share(0.1), lambda: share(0.0)
    )


def notifications_dropped(on: Field) -> Recovery | None:
    def drop(whether: bool) -> None:
        for link in on.lab.proxy.links.values():
            link.drops_notifications = whether

    return _for_a_while(on, "all notifications dropped", 8.0, lambda: drop(True), lambda: drop(False))


def node_without_database(on: Field) -> Recovery | None:
    """Actors and Postgres apart, in one direction or both."""
    node = on.node()
    if node is None:
        return None
    return _partition(on, "actors cut off from Postgres", node, frozenset({node, *on.lab.device_ids(node)}))


def fleet_without_database(on: Field) -> Recovery | None:
    leader = on.lab.active_fleet()
    return None if leader is None else _partition(on, "fleet cut off from Postgres", leader, frozenset({"fleet"}))


def api_without_database(on: Field) -> Recovery | None:
    return _partition(on, "API cut off from Postgres", "api", frozenset({"api"}))


def _partition(on: Field, name: str, link: str, touches: frozenset[str]) -> Recovery:
    up, down = on.dice.choice(((True, True), (True, False), (False, True)))
    lab = on.lab
    recovery = _for_a_while(
        on, name, on.dice.uniform(1, 12), lambda: lab.proxy.partition(link, up=up, down=down), lambda: lab.proxy.heal(link)
    )
    recovery.touches = touches
    return recovery


def node_unplugged(on: Field) -> Recovery | None:
    """The node's cable is pulled: no Ray, no Postgres, and nobody is told."""
    return _unplugged(on, "node unplugged for seconds", on.dice.uniform(1, 12))


def node_unplugged_long(on: Field) -> Recovery | None:
    """For so long that Ray counts the node as dead."""
    return _unplugged(on, "node unplugged for a minute", 60.0)


def _unplugged(on: Field, name: str, seconds: float) -> Recovery | None:
    lab, node = on.lab, on.lab.plan.behind_cable
    if lab.cable is None or node is None or {node, *lab.device_ids(node)} & on.taken:
        return None
    recovery = _for_a_while(on, name, seconds, lab.cable.unplug, lab.cable.plug_in)
    recovery.touches = frozenset({node, *lab.device_ids(node)})
    recovery.limit_s = 150
    return recovery


def spool_full(on: Field) -> Recovery | None:
    """No byte is left for outcomes; they must reach the ledger all the same."""
    node = on.node()
    disk = next((one for one in on.lab.small_disks if node is not None and one.parent.name == node), None)
    if node is None or disk is None:
        return None
    filler = disk / "filler"
    recovery = _for_a_while(
        on, "disk full for the spool", on.dice.uniform(4, 8), lambda: fill(filler), lambda: filler.unlink()
    )
    recovery.touches = frozenset({node, *on.lab.device_ids(node)})
    return recovery


def fill(path: Path) -> None:
    """Take every byte the disk has."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    size = 1 << 20
    try:
        while size:
            try:
                os.write(descriptor, bytes(size))
            except OSError:
                size //= 2
    finally:
        os.close(descriptor)


def clock_stepped(on: Field) -> Recovery | None:
    """A node comes back an hour ahead or behind; the next time it is struck it is right again."""
    node = on.node()
    if node is None or not has_faketime():
        return None
    environment = on.lab.kept[node].environment
    if environment.pop("LD_PRELOAD", None) is None:
        environment |= {
            "LD_PRELOAD": FAKETIME_LIBRARY, "FAKETIME": on.dice.choice(("+1h", "-1h")), "DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }  # fmt: skip
    recovery = _node_down(on, "clock of a node off by an hour", [node])
    _power_off(on, node, 0.5)
    return recovery


FAKETIME_LIBRARY = f"/usr/lib/{os.uname().machine}-linux-gnu/faketime/{FAKETIME}"


def has_faketime() -> bool:
    return Path(FAKETIME_LIBRARY).exists()


def idle_transaction(on: Field) -> Recovery | None:
    """A transaction that sits there with a row locked; its time-out must end it."""
    from effillm_server.ledger.engine import connect

    lab = on.lab
    engine = connect(lab.database.url, "api")
    connection = engine.connect()
    pid = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
    connection.exec_driver_sql("SELECT id FROM sweep LIMIT 1 FOR UPDATE")

    def gone() -> bool:
        if lab.database.read("SELECT FROM pg_stat_activity WHERE pid = :pid", pid=pid):
            return False
        connection.invalidate()
        connection.close()
        engine.dispose()
        return True

    return Recovery("idle transaction left open", [gone], frozenset({"idle"}), 30)


def sweep_cancelled(on: Field) -> Recovery | None:
    """In the middle of its measurements; its devices must be free for others within seconds."""
    lab = on.lab
    rows = lab.database.read(
        "SELECT DISTINCT sweep_id FROM job WHERE state = 'leased' AND runtime = 'witnessed' ORDER BY sweep_id"
    )
    if not rows or on.client.is_busy:
        return None
    sweep = str(on.dice.choice(rows)[0])
    held = [str(row[0]) for row in lab.database.read(
        "SELECT l.device_id FROM lease_device l JOIN job j ON j.id = l.job_id WHERE j.sweep_id = :s", s=sweep)]  # fmt: skip
    if set(held) & on.taken:
        return None
    since = now()
    on.client.cancel(sweep)

    def over() -> bool:
        left = lab.database.scalar(
            "SELECT count(*) FROM job WHERE sweep_id = :s AND state IN ('pending', 'leased')", s=sweep
        )
        return left == 0 and all_back(lab, held, since)

    return Recovery("sweep cancelled while measuring", [over], frozenset({"cancel", *held}))


def _for_a_while(
    on: Field, name: str, seconds: float, begin: Callable[[], object], end: Callable[[], object]
) -> Recovery:
    """A condition that lasts; the lab must serve again after it."""
    lab = on.lab
    recovery = Recovery(name, [], frozenset({name}))

    def heal() -> None:
        end()
        since = now()
        recovery.heal()
        recovery.looks.append(lambda: is_serving(lab, since))

    begin()
    recovery.looks.append(recovery.is_healed)
    lab.later(seconds, heal)
    return recovery


def _raylet(lab: Lab, node: str) -> tree.Process | None:
    return tree.named(tree.below(lab.kept[node].pid), "raylet")


@dataclass(frozen=True)
class Kind:
    """A fault, how often a campaign of some 220 injects it, and whether nothing else may be broken meanwhile."""

    inject: Callable[[Field], Recovery | None]
    times: int
    alone: bool = False
    needs: Callable[[Lab], bool] = lambda lab: True


FAULTS: dict[str, Kind] = {
    "child": Kind(child_killed, 26),
    "supervisor": Kind(supervisor_killed, 16),
    "actor": Kind(actor_killed, 20),
    "actor-stop": Kind(actor_stopped, 10),
    "raylet-stop": Kind(raylet_stopped, 5),
    "raylet": Kind(raylet_killed, 5),
    "raylet-zombie": Kind(raylet_zombie, 2),
    "node": Kind(node_killed, 5),
    "most-nodes": Kind(most_nodes_killed, 1, alone=True),
    "head": Kind(head_killed, 1, alone=True),
    "fleet": Kind(fleet_killed, 20),
    "fleets": Kind(fleets_killed, 4),
    "fleet-stop": Kind(fleet_stopped, 5),
    "api": Kind(api_killed, 40),
    "database": Kind(database_restarted, 10, alone=True),
    "database-away": Kind(database_away, 4, alone=True),
    "backends": Kind(backends_terminated, 5, alone=True),
    "connections": Kind(connections_exhausted, 3, alone=True),
    "answers": Kind(answers_lost, 8),
    "notifications": Kind(notifications_dropped, 3),
    "node-database": Kind(node_without_database, 10),
    "fleet-database": Kind(fleet_without_database, 5),
    "api-database": Kind(api_without_database, 4),
    "cable": Kind(node_unplugged, 5, needs=lambda lab: lab.cable is not None),
    "cable-long": Kind(node_unplugged_long, 1, needs=lambda lab: lab.cable is not None),
    "spool": Kind(spool_full, 4, needs=lambda lab: bool(lab.small_disks)),
    "clock": Kind(clock_stepped, 2, needs=lambda lab: has_faketime()),
    "idle": Kind(idle_transaction, 2),
    "cancel": Kind(sweep_cancelled, 6),
}
