from __future__ import annotations

import pytest

from effillm_server.api import examples
from tests.support.api import Api, add_device, declaration, lease


def test_devices_are_listed_with_what_they_do(api: Api) -> None:
    assert api.http.get("/v1/devices").json() == {"items": [], "next": None}
    api.submit()
    add_device(api.engine)
    add_device(api.engine, declaration("bench-2-t4", "t4", declared=True))
    held = lease(api.engine)
    devices = {device["id"]: device for device in api.http.get("/v1/devices").json()["items"]}
    busy, idle = devices[examples.DEVICE_ID], devices["bench-2-t4"]
    assert (busy["state"], busy["job"]) == ("leased", held.job_id)
    assert (idle["state"], idle["job"], idle["declared"]) == ("free", None, True)


def test_a_drained_device_takes_nothing_until_it_is_undrained(api: Api) -> None:
    device_id = add_device(api.engine)
    assert api.http.post(f"/v1/devices/{device_id}/drain").json()["state"] == "draining"
    assert api.http.get("/v1/devices").json()["items"][0]["state"] == "draining"
    assert api.http.post(f"/v1/devices/{device_id}/undrain").json()["state"] == "free"


@pytest.mark.parametrize("verb", ["drain", "undrain"])
def test_an_unknown_device_is_not_found(api: Api, verb: str) -> None:
    answer = api.http.post(f"/v1/devices/nowhere/{verb}")
    assert answer.status_code == 404
    assert "no device has the id 'nowhere'" in answer.json()["detail"]


@pytest.mark.parametrize("device_id", ["%00", "a%00b", "a%0Ab", "%2e%2e", "a b", "x" * 201])
def test_what_cannot_be_a_device_id_is_refused(api: Api, device_id: str) -> None:
    assert api.http.post(f"/v1/devices/{device_id}/drain").status_code in (404, 422)
