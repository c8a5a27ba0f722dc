"""A Ray cluster by declaration: offers, actors that answer what the test says, and a record of what they were told."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from effillm_server.contract.job import Lease
from effillm_worker.fleet.offers import Offer


@dataclass
class FakePool:
    """Implements `effillm_worker.fleet.offers.Pool`."""

    reachable: bool = True
    offered: dict[str, Offer] = field(default_factory=dict)
    answers: dict[str, dict[str, Any]] = field(default_factory=dict)
    started: list[tuple[str, Lease]] = field(default_factory=list)
    checked: list[str] = field(default_factory=list)
    requested: list[list[dict[str, float]]] = field(default_factory=list)
    retired: list[str] = field(default_factory=list)

    def add(self, device_id: str, hardware_class: str, boot_id: str, **status: Any) -> None:
        """A device whose actor answers that it is idle, unless `status` says otherwise."""
        self.offered[device_id] = Offer(device_id, hardware_class)
        idle = {"boot_id": boot_id, "job_id": None, "fence": None, "group": None, "group_since": None}
        self.answers[device_id] = idle | status

    def is_reachable(self) -> bool:
        return self.reachable

    def offers(self) -> dict[str, Offer]:
        return dict(self.offered)

    def statuses(self, offers: Iterable[Offer]) -> dict[str, dict[str, Any]]:
        return {offer.device_id: self.answers[offer.device_id] for offer in offers if offer.device_id in self.answers}

    def start(self, device_id: str, lease: Lease) -> None:
        self.started.append((device_id, lease))

    def check(self, device_id: str) -> None:
        self.checked.append(device_id)

    def request(self, bundles: list[dict[str, float]]) -> None:
        self.requested.append(bundles)

    def retire(self, device_id: str) -> None:
        self.retired.append(device_id)
