"""What the pages load: ours, unchanged, and kept by browsers as long as it is the same."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import httpx
import pytest

from effillm_server.web.assets import FOR_EVER, STATIC, address, assets
from tests.support.api import Api


@pytest.mark.parametrize(
    "folder", [STATIC / "vendor", Path(__file__).parents[2] / "browser/vendor"], ids=["page", "tests"]
)
def test_every_library_is_the_file_of_the_version_it_says_and_has_its_licence(folder: Path) -> None:
    packages = json.loads((folder / "versions.json").read_text())
    named = {"versions.json"}
    for package in packages.values():
        assert package["sha256"].keys() == set(package["files"].values())
        assert any(name.endswith(".LICENSE") for name in package["sha256"])
        for name, digest in package["sha256"].items():
            assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest, name
        named |= package["sha256"].keys()
    assert {path.name for path in folder.iterdir()} == named


def test_an_asset_asked_for_by_its_digest_is_kept_for_ever(empty: Api) -> None:
    found = empty.http.get(address("app.css"))
    assert found.headers["cache-control"] == FOR_EVER
    assert found.headers["content-type"] == "text/css; charset=utf-8"
    assert found.content == (STATIC / "app.css").read_bytes()
    assert empty.http.get("/static/app.css?v=old").headers["cache-control"] == "no-cache"


def test_an_asset_is_packed_for_those_who_can_unpack_it(empty: Api) -> None:
    plain = httpx.Client(
        base_url=empty.http.base_url, headers={"Accept-Encoding": "identity"}, trust_env=False, timeout=120
    )
    with plain:
        whole = plain.get(address("vendor/vega.min.js"))
    packed = empty.http.get(address("vendor/vega.min.js"), headers={"Accept-Encoding": "gzip"})
    assert "content-encoding" not in whole.headers
    assert packed.headers["content-encoding"] == "gzip"
    assert packed.content == whole.content
    assert int(packed.headers["content-length"]) < len(whole.content) / 2


@pytest.mark.parametrize(
    "name", ["../routes.py", "..%2Froutes.py", "%2e%2e/templating.py", "vendor", "vendor/", "no.js", "/etc/passwd"]
)
def test_nothing_else_is_served(empty: Api, name: str) -> None:
    assert empty.http.get(f"/static/{name}").status_code == 404


def test_every_file_is_read_once_and_none_is_missing() -> None:
    assert {"app.css", "live.js", "charts.js", "sliders.js", "icon.svg"} <= assets().keys()
    assert assets() is assets()
