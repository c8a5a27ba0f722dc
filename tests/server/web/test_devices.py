"""The page of the lab."""

from __future__ import annotations

from effillm_server.api import examples
from tests.server.web.conftest import Lab
from tests.support.pages import Markup

FORM = {"Content-Type": "application/x-www-form-urlencoded"}


def test_every_box_is_there_with_what_its_devices_do_also_one_that_vanished(lab: Lab) -> None:
    markup = Markup.of(lab.page("/devices"))
    boxes = {at["aria-label"] for at in markup.all("section")}
    assert boxes == {f"Box {device['node']}" for device in lab.api.http.get("/v1/devices").json()["items"]}
    assert "Vanished: last seen" in markup.text
    assert "its box does not answer" in markup.text


def test_classes_that_jobs_wait_for_and_nobody_has_are_named(lab: Lab) -> None:
    sweep = lab.api.submit(**examples.DEFINITION | {"hardware": ["a10"]})["id"]
    assert "Jobs wait for classes that no device here has: a10 (4)" in Markup.of(lab.page("/devices")).text
    lab.api.http.post(f"/v1/sweeps/{sweep}/cancel")


def test_a_device_is_drained_and_undrained_by_its_button(lab: Lab) -> None:
    device = next(d["id"] for d in lab.api.http.get("/v1/devices").json()["items"] if d["state"] != "lost")
    assert lab.api.http.post(f"/devices/{device}/drain", headers=FORM).headers["location"] == "/devices"
    assert f"/devices/{device}/undrain" in lab.page("/devices")
    assert lab.api.http.post(f"/devices/{device}/undrain", headers=FORM).status_code == 303
    assert f"/devices/{device}/drain" in lab.page("/devices")
