"""The actors on the Ray cluster: found by name, made where there are none, spoken to without waiting. Only this file drives Ray."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import ray
from ray.autoscaler.sdk import request_resources
from ray.exceptions import ActorUnavailableError, RayActorError, RayError

from effillm_server.contract.job import Lease
from effillm_server.errors import Unavailable
from effillm_worker import head
from effillm_worker.actor import WorkerActor
from effillm_worker.fleet.offers import RESOURCE_PREFIX, Offer
from effillm_worker.log import event

NAMESPACE = "effillm"
# `start`, `status` and `check` answer beside each other; none of them waits.
CONCURRENCY = 4
# Actors answer in milliseconds; one that is just starting must not keep the others waiting.
ANSWER_WITHIN_S = 0.1
GROWN_UP_S = 120.0
LONGEST_REST_S = 60.0


@dataclass
class _Births:
    """When actors of one device were made: one that dies young is made again later and later, a box that lacks something
    would otherwise start processes for ever."""

    last: float | None = None
    young_deaths: int = 0

    def may_try(self, now: float) -> bool:
        """Whether an actor may be made now; if so it counts as made."""
        if self.last is not None and now - self.last < min(2.0**self.young_deaths, LONGEST_REST_S):
            return False
        lived_long = self.last is None or now - self.last >= GROWN_UP_S
        self.young_deaths = 0 if lived_long else self.young_deaths + 1
        self.last = now
        return True


class RayPool:
    """The pool on a real cluster."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._actors: dict[str, Any] = {}
        self._asked: dict[str, Any] = {}
        self._births: dict[str, _Births] = {}

    def connect(self) -> None:
        """Become a driver of the cluster. Raises Unavailable where this box runs no node of it."""
        try:
            ray.init(
                address=self._address,
                namespace=NAMESPACE,
                log_to_driver=False,
                configure_logging=False,
                logging_level="ERROR",
            )
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise Unavailable(
                f"the fleet cannot join the Ray cluster at {self._address} ({_one_line(error)}): it needs a node on its own box, "
                "`effillm node --address HOST:PORT --no-devices` if nothing else runs here"
            ) from error

    def close(self) -> None:
        """Leave the cluster; the actors stay."""
        ray.shutdown()

    def is_reachable(self) -> bool:
        return head.answers(self._address)

    def offers(self) -> dict[str, Offer]:
        found = (
            _offer(resource)
            for node in ray.nodes()
            if node["Alive"]
            for resource in node["Resources"]
            if resource.startswith(RESOURCE_PREFIX)
        )
        return {offer.device_id: offer for offer in found}

    def statuses(self, offers: Iterable[Offer]) -> dict[str, dict[str, Any]]:
        wanted = {offer.device_id: offer for offer in offers}
        for gone in self._actors.keys() - wanted.keys():
            self._forget(gone)
        for offer in wanted.values():
            actor = self._actor(offer)
            if actor is not None and offer.device_id not in self._asked:
                self._asked[offer.device_id] = actor.status.remote()
        if not self._asked:
            return {}
        ray.wait(list(self._asked.values()), num_returns=len(self._asked), timeout=ANSWER_WITHIN_S)
        answers = {device_id: self._answer(device_id) for device_id in list(self._asked)}
        return {device_id: answer for device_id, answer in answers.items() if answer is not None}

    def start(self, device_id: str, lease: Lease) -> None:
        if device_id in self._actors:
            self._actors[device_id].start.remote(lease.model_dump(mode="json"))

    def check(self, device_id: str) -> None:
        if device_id in self._actors:
            self._actors[device_id].check.remote()

    def request(self, bundles: list[dict[str, float]]) -> None:
        request_resources(bundles=bundles)

    def retire(self, device_id: str) -> None:
        actor = self._actors.get(device_id)
        if actor is not None:
            ray.kill(actor)
            self._forget(device_id)

    def _actor(self, offer: Offer) -> Any | None:
        """The device's actor: known, found by its name, or made now; None while an old one's name is still taken."""
        if offer.device_id not in self._actors:
            found = _named(offer) or self._make(offer)
            if found is None:
                return None
            self._actors[offer.device_id] = found
        return self._actors[offer.device_id]

    def _make(self, offer: Offer) -> Any | None:
        births = self._births.setdefault(offer.device_id, _Births())
        return _made(offer) if births.may_try(time.monotonic()) else None

    def _answer(self, device_id: str) -> dict[str, Any] | None:
        question = self._asked[device_id]
        ready, _ = ray.wait([question], timeout=0)
        if not ready:
            return None
        del self._asked[device_id]
        try:
            answer: dict[str, Any] = ray.get(question)
        except ActorUnavailableError:
            return None
        except RayActorError as error:
            event("actor.gone", device=device_id, why=_one_line(error))
            self._forget(device_id)
            return None
        return answer

    def _forget(self, device_id: str) -> None:
        self._actors.pop(device_id, None)
        self._asked.pop(device_id, None)


def _named(offer: Offer) -> Any | None:
    try:
        actor = ray.get_actor(offer.actor_name, namespace=NAMESPACE)
    except ValueError:
        return None
    event("actor.adopted", device=offer.device_id)
    return actor


def _made(offer: Offer) -> Any | None:
    options = {
        "name": offer.actor_name,
        "namespace": NAMESPACE,
        "lifetime": "detached",
        "max_restarts": 0,
        "max_concurrency": CONCURRENCY,
        "num_cpus": 0,
        "num_gpus": 0 if offer.hardware_class == "cpu" else 1,
        "resources": {offer.resource: 1},
    }
    try:
        actor = ray.remote(WorkerActor).options(**options).remote(offer.device_id)
    except (ValueError, RayError) as error:
        event("actor.not_made", device=offer.device_id, why=str(error))
        return None
    event("actor.made", device=offer.device_id, hardware_class=offer.hardware_class)
    return actor


def _offer(resource: str) -> Offer:
    hardware_class, _, device_id = resource.removeprefix(RESOURCE_PREFIX).partition(":")
    return Offer(device_id, hardware_class)


def _one_line(error: Exception) -> str:
    """The beginning of what Ray says, which may go on with a whole log."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
