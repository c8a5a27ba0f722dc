"""Faults of the machines that measure: child, supervisor, actor, raylet, whole nodes, their disks and cables."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from tests.support.faults import tree
from tests.support.faults.field import Field, for_a_while, partition, stopped
from tests.support.faults.lab import Lab
from tests.support.faults.recovery import (
    Recovery,
    all_back,
    device_back,
    devices,
    ended_after,
    is_serving,
    lease_of,
    now,
)
from tests.support.faults.witness import NODE_KILLER


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


def _worker_killed(on: Field, name: str, worker: tree.Worker, victim: tree.Process, boot: str | None) -> Recovery:
    lab, device, since = on.lab, worker.device, now()
    lease = lease_of(lab, device)
    victim.send(signal.SIGKILL)
    doomed = (worker.child,) if boot is None else (worker.supervisor, worker.child)
    recovery = Recovery(name, [], frozenset({device}), doomed=doomed, gone_within_s=5.0)

    def ended() -> bool:
        after = ended_after(lab, lease, since)
        # Where the actor itself is gone nobody can classify: the lease or the actor's successor ends the attempt.
        recovery.classified_s = after if boot is None else None
        return after is not None

    recovery.looks += [ended, lambda: device_back(lab, device, since, boot)]
    return recovery


def actor_stopped(on: Field) -> Recovery | None:
    """SIGSTOP for longer than a lease lives, then SIGCONT: its late report meets whatever became of the job."""
    if (worker := on.worker()) is None:
        return None
    return stopped(on, "actor stopped", worker.actor, [worker.device], on.asleep_s())


def raylet_stopped(on: Field) -> Recovery | None:
    node = on.node()
    raylet = None if node is None else _raylet(on.lab, node)
    if node is None or raylet is None:
        return None
    return stopped(on, "raylet stopped", raylet, on.lab.device_ids(node), on.asleep_s())


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
    """Every node that has declared devices; of four nodes the head alone is left."""
    recovery = _node_down(on, "three nodes of four killed", on.lab.nodes)
    for node in on.lab.nodes:
        _power_off(on, node, on.dice.uniform(0.5, 4))
    return recovery


def head_killed(on: Field) -> Recovery | None:
    """Ray's head goes with its node; a blank one comes up at the same address."""
    head = on.lab.head
    recovery = _node_down(on, "Ray head killed", on.lab.nodes)
    recovery.touches |= {head}
    recovery.gone_within_s = 90.0  # the other nodes give a lost head a minute before they end their actors
    recovery.limit_s = 180.0
    lab, since = on.lab, now()
    recovery.looks.append(lambda: is_serving(lab, since))
    _power_off(on, head, 1.0)
    return recovery


def node_without_database(on: Field) -> Recovery | None:
    """Actors and Postgres apart, in one direction or both."""
    node = on.node()
    if node is None:
        return None
    return partition(on, "actors cut off from Postgres", node, frozenset({node, *on.lab.device_ids(node)}))


def node_without_database_long(on: Field) -> Recovery | None:
    """For many lease lives: everything the node holds is taken back and given to others meanwhile."""
    node = on.node()
    if node is None:
        return None
    touches = frozenset({node, *on.lab.device_ids(node)})
    return partition(on, "actors cut off from Postgres for long", node, touches, on.long_s)


def ray_one_way(on: Field) -> Recovery | None:
    """The node and Ray apart in one direction; its actors' way to Postgres stays as it is."""
    return _ray_one_way(on, "node and Ray apart in one direction", on.dice.uniform(1, 12))


def ray_one_way_long(on: Field) -> Recovery | None:
    return _ray_one_way(on, "node and Ray apart in one direction for long", on.long_s)


def _ray_one_way(on: Field, name: str, seconds: float) -> Recovery | None:
    lab, node = on.lab, on.lab.plan.behind_cable
    cable = lab.cable
    if cable is None or node is None or {node, *lab.device_ids(node)} & on.taken:
        return None
    outgoing, spared = on.dice.random() < 0.5, lab.proxy.links[node].port
    recovery = for_a_while(on, name, seconds, lambda: cable.lose(outgoing, spared), cable.lose_nothing)
    recovery.touches = frozenset({node, *lab.device_ids(node)})
    return recovery


def node_killing_job(on: Field) -> Recovery | None:
    """A job that takes its node with it every time: given up after three attempts, with the reason, and the nodes return."""
    lab = on.lab
    free = [
        hardware for hardware in on.definitions.classes
        if not any({node, *lab.device_ids(node)} & on.taken or not lab.kept[node].is_running for node in _nodes_of(lab, hardware))
    ]  # fmt: skip
    if not free or on.client.is_busy:
        return None
    hardware, since = on.dice.choice(free), now()
    nodes = _nodes_of(lab, hardware)
    names = [device for node in nodes for device in lab.device_ids(node)]
    sending = on.client.send(on.definitions.one_cell(NODE_KILLER, hardware))

    def given_up() -> bool:
        if sending.accepted is None:
            return False
        rows = lab.database.read("SELECT state, message FROM job WHERE sweep_id = :s", s=sending.accepted.sweep_id)
        return [str(row[0]) for row in rows] == ["failed"] and "given up after 3 attempts" in str(rows[0][1])

    looks = [given_up, lambda: all_back(lab, names, since)]
    return Recovery("a job that kills its node every time", looks, frozenset({*nodes, *names}), limit_s=300)


def _nodes_of(lab: Lab, hardware: str) -> list[str]:
    return [name for name in lab.nodes if any(offer.partition(":")[0] == hardware for offer in lab.plan.nodes[name])]


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
    recovery = for_a_while(on, name, seconds, lab.cable.unplug, lab.cable.plug_in)
    recovery.touches = frozenset({node, *lab.device_ids(node)})
    return recovery


def spool_full(on: Field) -> Recovery | None:
    """No byte is left for outcomes; they must reach the ledger all the same."""
    node = on.node()
    disk = next((one for one in on.lab.small_disks if node is not None and one.parent.name == node), None)
    if node is None or disk is None:
        return None
    filler = disk / "filler"
    recovery = for_a_while(
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
    return Recovery(name, [lambda: all_back(lab, names, since, boots)], frozenset({*nodes, *names}), doomed=doomed)


def _raylet(lab: Lab, node: str) -> tree.Process | None:
    return tree.named(tree.below(lab.kept[node].pid), "raylet")
