"""Routes of devices: what the lab has and what each is doing, drain and undrain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fastapi import APIRouter, Request, Response
from starlette.concurrency import run_in_threadpool

from effillm_server.api import audit
from effillm_server.api.auth import Admin, Reader
from effillm_server.api.documented import problems
from effillm_server.api.services import EVERYTHING, DeviceId, Served, Services, device_of
from effillm_server.api.shown import Shown
from effillm_server.api.views import DeviceView, PageView
from effillm_server.ledger import keys, queries, queue
from effillm_server.records import DeviceRecord, Viewer

router = APIRouter(prefix="/v1/devices", tags=["devices"])


@router.get("", summary="The devices of the lab", response_model=PageView[DeviceView], responses=problems())
async def listing(request: Request, served: Served, who: Reader) -> Response:
    """All of them, lost ones too; `reason` says why one is not free: `busy` where it measures what is private to others."""
    lab, shown = await served.together.get("devices", lambda: _shown(served))
    if lab.hidden(who.viewer):
        shown = await run_in_threadpool(lambda: Shown.of(lab.view(who.viewer)))
    return shown.answer(request)


def all_of(served: Services, viewer: Viewer) -> PageView[DeviceView]:
    """Every device, with what `viewer` may know of its work."""
    return _lab(served).view(viewer)


@dataclass(frozen=True)
class _Lab:
    """The devices, and whose are the jobs that they measure: visibility and owner by job."""

    devices: Sequence[DeviceRecord]
    access: Mapping[int, tuple[str, str | None]]

    def hidden(self, viewer: Viewer) -> set[int]:
        """The jobs that `viewer` may not know of."""
        return {job_id for job_id, of_sweep in self.access.items() if not viewer.sees(*of_sweep)}

    def view(self, viewer: Viewer) -> PageView[DeviceView]:
        hidden = self.hidden(viewer)
        return PageView(items=[DeviceView.of(device, is_hidden=device.job_id in hidden) for device in self.devices])


def _lab(served: Services) -> _Lab:
    with served.reading() as connection:
        found = queries.devices(connection)
        jobs = [device.job_id for device in found if device.job_id is not None]
        return _Lab(found, keys.access_of(connection, jobs))


def _shown(served: Services) -> tuple[_Lab, Shown]:
    """The lab, and what those see from whom nothing of it is hidden."""
    lab = _lab(served)
    return lab, Shown.of(lab.view(EVERYTHING))


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
