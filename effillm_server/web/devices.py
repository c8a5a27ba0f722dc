"""The page of the lab: each box and its devices, what they do now, what they can, why they do not."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from typing import Any

from fastapi import APIRouter, Request, Response
from starlette.responses import HTMLResponse, RedirectResponse

from effillm_server.api import devices as api
from effillm_server.api.auth import Admin, Reader
from effillm_server.api.services import DeviceId, Served
from effillm_server.api.views import DeviceView
from effillm_server.ledger import queries
from effillm_server.records import JobRecord
from effillm_server.web import words
from effillm_server.web.sweeps import live_of
from effillm_server.web.templating import page

GIGA = 1e9
router = APIRouter(tags=["page-devices"], include_in_schema=False)


@router.get("/devices")
def listing(request: Request, served: Served, who: Reader) -> HTMLResponse:
    """Every device that ever joined, by box."""
    live = live_of(served)
    found = sorted(api.all_of(served, who.viewer).items, key=lambda device: (device.node, device.id))
    with served.reading() as connection:
        doing = {device.id: queries.job(connection, device.job) if device.job else None for device in found}
        waiting = queries.waiting_classes(connection)
    present = {device.hardware_class for device in found if device.state != "lost"}
    return page(
        request, who, "devices.html", live=live, boxes=_boxes(found, doing),
        idle={device.hardware_class: _idle(waiting.get(device.hardware_class, 0)) for device in found},
        ceilings={device.id: _ceiling(device.ceiling or {}) for device in found},
        lacking=[(name, jobs) for name, jobs in waiting.items() if name not in present],
    )  # fmt: skip


@router.post("/devices/{device_id}/drain")
def drain(served: Served, who: Admin, device_id: DeviceId) -> Response:
    """No further job for it, and back to the lab."""
    api.drain(served, who, device_id)
    return RedirectResponse("/devices", 303)


@router.post("/devices/{device_id}/undrain")
def undrain(served: Served, who: Admin, device_id: DeviceId) -> Response:
    """Jobs again, and back to the lab."""
    api.undrain(served, who, device_id)
    return RedirectResponse("/devices", 303)


def _boxes(
    found: list[DeviceView], doing: Mapping[str, JobRecord | None]
) -> list[tuple[str, list[tuple[DeviceView, JobRecord | None]]]]:
    return [
        (box, [(device, doing[device.id]) for device in devices])
        for box, devices in groupby(found, key=lambda device: device.node)
    ]


def _idle(waiting: int) -> str:
    return f"{waiting:,} jobs of its class wait" if waiting else "no job waits for its class"


def _ceiling(of: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the device reaches at most: memory traffic and products per second."""
    found = []
    if of.get("copy_bytes_s"):
        found.append(("memory bandwidth", f"{of['copy_bytes_s'] / GIGA:,.3g} GB/s"))
    for dtype, rate in (of.get("matmul_flop_s") or {}).items():
        found.append((f"products in {dtype}", f"{rate / GIGA:,.4g} Gop/s"))
    return found or [(words.label(name), words.value(name, value)) for name, value in of.items()]
