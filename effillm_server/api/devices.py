"""Routes of devices: what the lab has and what each is doing, drain and undrain."""

from __future__ import annotations

from fastapi import APIRouter

from effillm_server.api.auth import Authenticated
from effillm_server.api.documented import problems
from effillm_server.api.services import DeviceId, Served, device_of
from effillm_server.api.views import DeviceView, PageView
from effillm_server.ledger import queries, queue

router = APIRouter(prefix="/v1/devices", tags=["devices"])


@router.get("", summary="The devices of the lab", responses=problems())
def listing(served: Served, who: Authenticated) -> PageView[DeviceView]:
    """All of them, lost ones too; `reason` says why one is not free."""
    with served.reading() as connection:
        return PageView(items=[DeviceView.of(device) for device in queries.devices(connection)])


@router.post("/{device_id}/drain", summary="Give a device no more jobs", responses=problems(404, 409))
def drain(served: Served, who: Authenticated, device_id: DeviceId) -> DeviceView:
    """What it measures now is finished; then it stays aside until `undrain`."""
    with served.writing() as connection:
        device_of(connection, device_id)
        queue.drain(connection, device_id)
        return DeviceView.of(device_of(connection, device_id))


@router.post("/{device_id}/undrain", summary="Give a drained device jobs again", responses=problems(404, 409))
def undrain(served: Served, who: Authenticated, device_id: DeviceId) -> DeviceView:
    """The opposite of `drain`."""
    with served.writing() as connection:
        device_of(connection, device_id)
        queue.undrain(connection, device_id)
        return DeviceView.of(device_of(connection, device_id))
