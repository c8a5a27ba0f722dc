"""Secrets planted in environment, requests, stderr and exceptions are found in no log, row, page or answer."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from sqlalchemy import text

from effillm_server.api import examples
from effillm_server.credentials import new_key
from effillm_server.ledger import tables
from effillm_server.ledger.engine import connect
from effillm_server.settings import Settings
from effillm_worker.bench import Bench
from tests.support.fake_engine import cell
from tests.support.isolation import device, opening, started
from tests.support.keys import bearer

ADMIN_KEY = "planted-admin-key-0123456789-abcdefghij"
HUB_TOKEN = "hf_" + "PlantedHubToken" * 2
PASSWORD = "planted-db-password"
SECRETS = (ADMIN_KEY, HUB_TOKEN, PASSWORD)
PATIENCE_S = 30


def environment(**settings: str) -> dict[str, str]:
    """This process's environment with these settings of ours and no others."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("EFFILLM_")}
    return inherited | {f"EFFILLM_{name}": value for name, value in settings.items()}


@contextmanager
def server(database_url: str, log: Path, **settings: str) -> Iterator[httpx.Client]:
    """A server process whose every output goes to `log`, and a client of it."""
    own = environment(DATABASE_URL=database_url, PORT="0", REQUIRE_KEYS="1", ADMIN_KEY=ADMIN_KEY, **settings)
    own |= {"HF_TOKEN": HUB_TOKEN, "HF_ENDPOINT": "http://127.0.0.1:9", "PGPASSWORD": PASSWORD}
    with (
        log.open("w") as stderr,
        subprocess.Popen(
            [sys.executable, "-m", "effillm_server.api"], env=own, stdout=subprocess.PIPE, stderr=stderr, text=True
        ) as process,
    ):
        try:
            assert process.stdout is not None
            url = process.stdout.readline().removeprefix("listening on ").strip()
            with httpx.Client(base_url=url, trust_env=False, timeout=PATIENCE_S) as client:
                yield client
        finally:
            process.terminate()
            process.wait()


def everything_stored(database_url: str) -> str:
    """Every row of every table as text."""
    engine = connect(database_url, "api")
    try:
        with engine.connect() as c:
            return "\n".join(
                str(row[0])
                for table in tables.metadata.sorted_tables
                for row in c.execute(text(f'SELECT row_to_json(t)::text FROM "{table.name}" t'))
            )
    finally:
        engine.dispose()


def test_a_server_tells_its_secrets_to_nobody(database_url: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    wrong, answers = new_key(), []
    with server(database_url, log) as client:
        admin = bearer(ADMIN_KEY)
        made = client.post("/v1/keys", json={"owner": "ada", "scopes": ["submit"]}, headers=admin).json()
        link = client.post("/v1/session/links", headers=admin).json()["path"]
        session = client.post("/v1/session", json={"key": ADMIN_KEY}, headers=admin)
        cookie = session.cookies["effillm_session"]
        client.cookies.clear()
        answers += [
            client.get(path, headers=bearer(wrong)) for path in ("/v1/sweeps", f"/v1/{wrong}", f"/login?token={wrong}")
        ]
        answers += [client.get(link), client.get(link), client.get(f"/v1/{ADMIN_KEY}", headers=admin)]
        answers += [
            client.post(
                "/v1/sweeps", json=examples.DEFINITION | {"models": [f"org/{secret}"]}, headers=bearer(made["key"])
            )
            for secret in ("x", "y")
        ]
        answers += [
            client.post("/v1/sweeps", json=examples.DEFINITION, headers=admin),
            client.get("/metrics", headers=admin),
        ]
        answers += [
            client.get(path, headers=admin)
            for path in ("/v1/keys", "/v1/audit", "/v1/session", "/openapi.json", "/sweeps")
        ]
    told = log.read_text()
    assert '"event": "request"' in told  # it did log
    stored = everything_stored(database_url)
    for secret in (*SECRETS, made["key"], wrong, cookie, link.partition("=")[2]):
        assert secret not in told, told[max(0, told.find(secret) - 300) :][:600]
        assert secret not in stored
        assert not [
            answer.url.path for answer in answers if secret in answer.text and secret not in str(answer.request.url)
        ]


def test_a_database_that_cannot_be_reached_is_reported_without_its_password(tmp_path: Path) -> None:
    url = f"postgresql://ada:{PASSWORD}@127.0.0.1:9/lab"
    done = subprocess.run(
        [sys.executable, "-m", "effillm_server.api"], env=environment(DATABASE_URL=url, PORT="0"), capture_output=True, text=True,
        check=False, timeout=PATIENCE_S,
    )  # fmt: skip
    assert done.returncode == 1
    assert PASSWORD not in done.stdout + done.stderr


@pytest.mark.parametrize("name", ["ADMIN_KEY", "DATABASE_URL"])
def test_a_setting_that_cannot_be_is_refused_without_its_value(name: str, database_url: str) -> None:
    values = {"DATABASE_URL": database_url, "PORT": "0", "REQUIRE_KEYS": "1", name: f"short-{PASSWORD}"[:30]}
    done = subprocess.run(
        [sys.executable, "-m", "effillm_server.api"], env=environment(**values), capture_output=True, text=True, check=False,
        timeout=PATIENCE_S,
    )  # fmt: skip
    assert done.returncode == 2
    assert PASSWORD not in done.stdout + done.stderr


# Children: what they write and what they say of their failure.


@pytest.mark.parametrize("behaviour", ["tell_on_stderr", "tell_by_report"])
def test_what_a_child_says_of_its_token_reaches_no_outcome(tmp_path: Path, behaviour: str) -> None:
    with started(tmp_path, behaviour, environment={"HF_TOKEN": HUB_TOKEN}) as child:
        outcome = child.open(opening(), PATIENCE_S)
    said = repr(outcome)
    assert "could not download" in said or "Unauthorized" in said, said
    assert "***" in said
    assert HUB_TOKEN not in said


@pytest.mark.parametrize(("changes", "needs"), [
    ({"weights": "pretrained"}, True), ({"weights": "synthetic", "model": "facebook/opt-125m"}, False),
    ({"weights": "pretrained", "engine": "simulated"}, False),
    ({"weights": "pretrained", "model": "lab/here"}, False), ({"weights": "synthetic", "model": "org/unknown"}, True),
])  # fmt: skip
def test_the_hubs_token_goes_to_a_child_that_must_download_and_to_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, str], needs: bool
) -> None:
    monkeypatch.setenv("HF_TOKEN", HUB_TOKEN)
    (tmp_path / "lab/here").mkdir(parents=True)
    (tmp_path / "lab/here/config.json").write_text("{}")
    bench = Bench(device(), Settings(model_root=tmp_path), lambda _: None)
    assert bench._hub_token(cell(**changes)) == ({"HF_TOKEN": HUB_TOKEN} if needs else {})
