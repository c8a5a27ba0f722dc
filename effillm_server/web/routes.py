"""Every page in one router, and errors as pages where a browser asks."""

from __future__ import annotations

from fastapi import APIRouter

from effillm_server.web import assets, compare, devices, jobs, keys, recommend, sign_in, submit, sweeps

PARTS = (assets, sign_in, submit, sweeps, jobs, devices, compare, recommend, keys)
router = APIRouter()
for part in PARTS:
    router.include_router(part.router)
