"""`effillm key` against a real server: made and shown once, listed, revoked; and the link and refusals of `up`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from effillm_server.cli.box import login_link
from effillm_server.cli.client import Client
from effillm_server.cli.local import Plan, checked
from effillm_server.errors import BadInput
from effillm_server.settings import Settings
from tests.support.api import Api, serving
from tests.support.commands import effillm
from tests.support.keys import ADMIN_KEY


@pytest.fixture
def guarded(database_url: str) -> Iterator[Api]:
    with serving(database_url, require_keys=True, admin_key=ADMIN_KEY) as api:
        yield api


def test_a_key_is_made_used_listed_and_revoked(guarded: Api) -> None:
    admin = {"EFFILLM_URL": str(guarded.http.base_url), "EFFILLM_API_KEY": ADMIN_KEY}
    made = effillm("key", "create", "ada", "--scope", "submit", "--days", "30", **admin)
    assert made.returncode == 0, made.stderr
    key = made.stdout.strip()
    assert key.startswith("eff_") and key not in made.stderr and "shown this once" in made.stderr
    ada = admin | {"EFFILLM_API_KEY": key}
    assert effillm("ls", **ada).returncode == 0
    refused = effillm("key", "list", **ada)
    assert refused.returncode == 2 and "scope admin" in refused.stderr
    listed = json.loads(effillm("key", "list", "--json", **admin).stdout)
    assert [(entry["owner"], entry["scopes"]) for entry in listed] == [("ada", ["submit"]), ("admin", ["admin"])]
    assert listed[0]["last_used_at"] and listed[0]["expires_at"] and key.startswith(listed[0]["prefix"])
    table = effillm("key", "list", **admin).stdout
    assert listed[0]["prefix"] in table and "never" in table and key not in table
    assert "is revoked" in effillm("key", "revoke", str(listed[0]["id"]), **admin).stdout
    ended = effillm("ls", **ada)
    assert ended.returncode == 2 and "revoked" in ended.stderr and "EFFILLM_API_KEY" in ended.stderr


@pytest.mark.parametrize("key", ["with a space in the middle of it, and long", "short", "é" * 40])
def test_what_is_no_key_is_not_sent(key: str) -> None:
    with pytest.raises(BadInput) as refused:
        Client("http://127.0.0.1:9", key)
    assert key not in str(refused.value)


def test_a_client_of_our_own_server_does_not_send_the_key_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EFFILLM_API_KEY", "k" * 40)
    assert "authorization" not in Client("http://127.0.0.1:9", "")._http.headers
    assert Client("http://127.0.0.1:9")._http.headers["authorization"] == f"Bearer {'k' * 40}"


def test_up_says_before_it_starts_anything_that_a_key_is_needed() -> None:
    for settings in (Settings(host="0.0.0.0", port=0), Settings(require_keys=True, port=0)):
        with pytest.raises(BadInput, match=r"EFFILLM_ADMIN_KEY.*EFFILLM_ADMIN_KEY_FILE"):
            checked(settings)
    assert checked(Settings(host="0.0.0.0", port=0, admin_key="k" * 40)).port > 0


def test_up_speaks_to_itself_on_loopback_as_its_admin(tmp_path: Path) -> None:
    file = tmp_path / "key"
    plan = Plan(Settings(host="0.0.0.0", port=8750, admin_key_file=file), tmp_path)
    assert plan.url == "http://127.0.0.1:8750"
    client = plan.client()
    assert client._http.headers["authorization"] == f"Bearer {file.read_text().strip()}"
    assert "authorization" not in Plan(Settings(), tmp_path).client()._http.headers


def test_the_link_names_the_address_that_browsers_see(guarded: Api, tmp_path: Path) -> None:
    settings = Settings(require_keys=True, admin_key=ADMIN_KEY, public_url="https://lab.example/")
    with closing(Client(str(guarded.http.base_url), ADMIN_KEY)) as client:
        link = login_link(Plan(settings, tmp_path), client)
    assert link.startswith("https://lab.example/login?token=")
    assert guarded.http.get(link.removeprefix("https://lab.example")).status_code == 303
