"""Routes of devices: what the lab has and what each is doing, drain and undrain."""

from __future__ import annotations

from fastapi import APIRouter

from effillm_server.api import audit
from effillm_server.api.auth import Admin, Reader
from effillm_server.api.documented import problems
from effillm_server.api.services import DeviceId, Served, device_of
from effillm_server.api.views import DeviceView, PageView
from effillm_server.ledger import keys, queries, queue

router = APIRouter(prefix="/v1/devices", tags=["devices"])


@router.get("", summary="The devices of the lab", responses=problems())
def listing(served: Served, who: Reader) -> PageView[DeviceView]:
    """All of them, lost ones too; `reason` says why one is not free: `busy` where it measures what is private to others."""
    with served.reading() as connection:
        found = queries.devices(connection)
        access = keys.access_of(connection, [device.job_id for device in found if device.job_id is not None])
    hidden = {job_id for job_id, of_sweep in access.items() if not who.viewer.sees(*of_sweep)}
    return PageView(items=[DeviceView.of(device, is_hidden=device.job_id in hidden) for device in found])


@router.post("/{device_id}/drain", summary="Give a device no more jobs", responses=problems(404, 409))
def drain(served: Served, who: Admin, device_id: DeviceId) -> DeviceView:
    """What it measures now is finished; then it stays aside until `undrain`."""
    with served.writing() as connection:
        device_of(connection, device_id)
        queue.drain(connection, device_id)
        audit.record(connection, who, "device.drain", device_id)
        return DeviceView.of(device_of(connection, device_id))


@router.post("/{device_id}/undrain", summary="Give a drained device jobs again", responses=problems(404, 409))
def undrain(served: Served, who: Admin, device_id: DeviceId) -> DeviceView:
    """The opposite of `drain`."""
    with served.writing() as connection:
        device_of(connection, device_id)
        queue.undrain(connection, device_id)
        audit.record(connection, who, "device.undrain", device_id)
        return DeviceView.of(device_of(connection, device_id))
