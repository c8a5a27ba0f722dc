"""Every way the lab is broken, with how often a campaign of some 220 faults injects it.

Each function breaks the lab once and says how its survival is recognised. The campaign's dice decide target and dose.
"""

from __future__ import annotations

from tests.support.faults import clock, network, service_faults, worker_faults
from tests.support.faults.field import Kind
from tests.support.faults.lab import Lab


def _has_filters(lab: Lab) -> bool:
    return lab.cable is not None and network.may_filter()


FAULTS: dict[str, Kind] = {
    "child": Kind(worker_faults.child_killed, 26),
    "supervisor": Kind(worker_faults.supervisor_killed, 16),
    "actor": Kind(worker_faults.actor_killed, 20),
    "node-killer": Kind(worker_faults.node_killing_job, 2),
    "actor-stop": Kind(worker_faults.actor_stopped, 10),
    "raylet-stop": Kind(worker_faults.raylet_stopped, 5),
    "raylet": Kind(worker_faults.raylet_killed, 5),
    "raylet-zombie": Kind(worker_faults.raylet_zombie, 2),
    "node": Kind(worker_faults.node_killed, 5),
    "most-nodes": Kind(worker_faults.most_nodes_killed, 1, alone=True),
    "head": Kind(worker_faults.head_killed, 1, alone=True),
    "fleet": Kind(service_faults.fleet_killed, 20, full=100),
    "fleets": Kind(service_faults.fleets_killed, 4),
    "fleet-stop": Kind(service_faults.fleet_stopped, 5),
    "api": Kind(service_faults.api_killed, 26, full=1000),
    "database": Kind(service_faults.database_restarted, 10, alone=True),
    "database-away": Kind(service_faults.database_away, 4, alone=True),
    "database-away-long": Kind(service_faults.database_away_long, 1, alone=True),
    "database-disk": Kind(service_faults.database_disk_full, 3, alone=True, needs=lambda lab: bool(lab.database_disk)),
    "backends": Kind(service_faults.backends_terminated, 5, alone=True),
    "connections": Kind(service_faults.connections_exhausted, 3, alone=True),
    "answers": Kind(service_faults.answers_lost, 8),
    "notifications": Kind(service_faults.notifications_dropped, 3),
    "node-database": Kind(worker_faults.node_without_database, 10),
    "node-database-long": Kind(worker_faults.node_without_database_long, 1),
    "ray-one-way": Kind(worker_faults.ray_one_way, 4, needs=_has_filters),
    "ray-one-way-long": Kind(worker_faults.ray_one_way_long, 1, needs=_has_filters),
    "fleet-database": Kind(service_faults.fleet_without_database, 5),
    "api-database": Kind(service_faults.api_without_database, 4),
    "cable": Kind(worker_faults.node_unplugged, 5, needs=lambda lab: lab.cable is not None),
    "cable-long": Kind(worker_faults.node_unplugged_long, 1, needs=lambda lab: lab.cable is not None),
    "spool": Kind(worker_faults.spool_full, 4, needs=lambda lab: bool(lab.small_disks)),
    "clock": Kind(service_faults.clocks_stepped, 2, needs=lambda lab: clock.is_possible()),
    "idle": Kind(service_faults.idle_transaction, 2),
    "cancel": Kind(service_faults.sweep_cancelled, 6),
}
