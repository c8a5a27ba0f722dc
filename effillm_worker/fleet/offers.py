"""What the fleet needs of a cluster, without Ray: the devices it offers and the actors on them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from effillm_server.contract.job import Lease

RESOURCE_PREFIX = "effillm_device:"
# Every node offers its classes by this name too: an autoscaling cluster is asked for a class, not for a device it does not know.
CLASS_PREFIX = "effillm_class:"


@dataclass(frozen=True)
class Offer:
    """A device that a living Ray node offers."""

    device_id: str
    hardware_class: str

    @property
    def resource(self) -> str:
        return f"{RESOURCE_PREFIX}{self.hardware_class}:{self.device_id}"

    @property
    def actor_name(self) -> str:
        return f"device:{self.device_id}"


class Pool(Protocol):
    """What the fleet needs of the cluster."""

    def is_reachable(self) -> bool:
        """Whether the head answers."""
        ...

    def offers(self) -> dict[str, Offer]:
        """The devices of all living nodes by id."""
        ...

    def statuses(self, offers: Iterable[Offer]) -> dict[str, dict[str, Any]]:
        """What the actors of these devices say that answer at once; missing actors are made and answer later."""
        ...

    def start(self, device_id: str, lease: Lease) -> None:
        """Hand a lease to the device's actor; whether it took it shows in its status."""
        ...

    def check(self, device_id: str) -> None:
        """Have the actor look whether its lease still stands."""
        ...

    def request(self, bundles: list[dict[str, float]]) -> None:
        """Have an autoscaling cluster make room for all of these at once; it forgets what it was asked for before."""
        ...

    def retire(self, device_id: str) -> None:
        """End the device's idle actor, so that its node may go."""
        ...
