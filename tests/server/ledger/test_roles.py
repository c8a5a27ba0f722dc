"""Real logins of least privilege: each does its work through the ledger's own functions, and tries what is not its own."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import ProgrammingError

from effillm_server.contract.outcome import InfeasibleReason
from effillm_server.errors import BadInput, Unavailable
from effillm_server.ledger import grants, queries, queue, roles
from effillm_server.ledger.engine import connect
from effillm_server.ledger.tables import metadata
from effillm_server.lifecycle import DeviceState, JobState
from tests.support.ledger import (
    BOOT,
    TTL_S,
    cell,
    child,
    crashed,
    declaration,
    expire,
    join,
    leased,
    measured,
    out_of_memory,
    request,
    submit,
)

MINE, OTHER = "box-cpu0", "attic-cpu0"


@dataclass
class Logins:
    """Engines of the owner and of one login of each kind; `node` is bound to the node `box`."""

    owner: Engine
    api: Engine
    fleet: Engine
    node: Engine
    attic: Engine


@pytest.fixture
def logins(database_url: str, tmp_path: Path) -> Iterator[Logins]:
    wanted = {"api": "api", "fleet": "fleet", "node": "node:box", "attic": "node:att*"}
    found = [roles.parse_login(f"{who}={tmp_path / name}") for name, who in wanted.items()]
    roles.secure(database_url, found)
    urls = {name: (tmp_path / name).read_text() for name in wanted}
    engines = {
        "owner": connect(database_url, "api"), "api": connect(urls["api"], "api"), "fleet": connect(urls["fleet"], "fleet"),
        "node": connect(urls["node"], "worker"), "attic": connect(urls["attic"], "worker"),
    }  # fmt: skip
    yield Logins(**engines)
    for engine in engines.values():
        engine.dispose()


def refused(engine: Engine, statement: str, why: str = "permission denied") -> None:
    with engine.connect() as connection, pytest.raises(ProgrammingError, match=why):
        connection.execute(text(statement))


def elsewhere(engine: Engine) -> str:
    """The device of another node, joined by a login that may."""
    with engine.begin() as c:
        one = declaration(OTHER).model_copy(update={"node": "attic"})
        queue.register_device(c, one, BOOT)
        assert queue.attest(c, OTHER, BOOT)
    return OTHER


def test_a_nodes_login_does_all_its_worker_does(logins: Logins) -> None:
    with logins.api.begin() as c:
        sweep_id = submit(c, *(cell(batch_size=size) for size in (1, 2, 4, 8)))
    with logins.node.begin() as c:
        join(c)
        assert queue.heartbeat(c, MINE, BOOT)
        lease = leased(c)
    with logins.node.begin() as c:
        held = ((lease.job_id, lease.fence),)
        assert queue.renew(c, MINE, BOOT, held, TTL_S).kept == held
        assert queue.record_child(c, MINE, BOOT, child())
        done = queue.finish(c, MINE, BOOT, lease.job_id, lease.fence, measured(), next_lease=request())
    assert done.state is JobState.MEASURED
    assert done.next is not None
    with logins.node.begin() as c:
        failed = queue.finish(c, MINE, BOOT, done.next.job_id, done.next.fence, out_of_memory(), next_lease=request())
        assert (failed.state, failed.next) == (JobState.INFEASIBLE, None)
        stale = queue.finish(c, MINE, BOOT, lease.job_id, lease.fence, crashed())
        assert not stale.accepted
    with logins.api.begin() as c:
        sweep = queries.sweep(c, sweep_id)
        assert sweep is not None
        assert (sweep.counts[JobState.MEASURED], sweep.reasons[InfeasibleReason.IMPLIED]) == (1, 2)
        assert sweep.state == "finished"
        assert len(list(c.execute(text("SELECT * FROM sample")))) == 13
    with logins.node.begin() as c:
        assert queue.quarantine(c, MINE, BOOT, "somebody else is on it")


def test_a_node_that_starts_anew_gives_back_what_its_former_life_held(logins: Logins) -> None:
    with logins.api.begin() as c:
        submit(c, cell())
    with logins.node.begin() as c:
        join(c)
        lease = leased(c)
    with logins.node.begin() as c:
        assert queue.register_device(c, declaration(), "boot-2") is DeviceState.QUARANTINED
    with logins.api.begin() as c:
        job = queries.job(c, lease.job_id)
        assert job is not None
        assert (job.state, job.faults) == (JobState.PENDING, 1)


def test_the_fleet_leases_reaps_and_gives_up_devices(logins: Logins) -> None:
    with logins.api.begin() as c:
        submit(c, cell(), cell(batch_size=2))
    with logins.node.begin() as c:
        join(c)
    with logins.fleet.begin() as c:
        assert [device.id for device in queries.devices(c)] == [MINE]
        assert queries.waiting_classes(c) == {"cpu": 2}
        lease = leased(c)
    with logins.owner.begin() as c:
        expire(c, lease.job_id)
    with logins.fleet.begin() as c:
        assert queue.reap(c, lambda: 0.5) == [(lease.job_id, lease.fence)]
        assert queue.mark_lost(c, MINE, "its node is gone") is False
    with logins.node.begin() as c:
        assert queue.attest(c, MINE, BOOT)
    with logins.fleet.begin() as c:
        assert queue.mark_lost(c, MINE, "its node is gone")


def test_a_worker_cannot_read_keys_sessions_audit_or_results(logins: Logins) -> None:
    for table in ("api_key", "session", "audit", "measurement", "sample", "event"):
        refused(logins.node, f"SELECT 1 FROM {table}")
    for column in ("owner", "name", "idempotency_key", "visibility", "facts"):
        refused(logins.node, f"SELECT {column} FROM sweep")
    for statement in (
        "DELETE FROM job", "DELETE FROM device", "DELETE FROM sweep", "UPDATE job SET priority = 100",
        "UPDATE job SET sweep_id = 'x'", "UPDATE sweep SET priority = 100", "INSERT INTO api_key DEFAULT VALUES",
        "UPDATE measurement SET verdict = 'valid'", "CREATE TABLE mine (n int)", "CREATE TEMP TABLE mine (n int)",
        "UPDATE alembic_version SET version_num = 'x'",
    ):  # fmt: skip
        refused(logins.node, statement)
    refused(logins.node, "SET ROLE effillm_api", "permission denied to set role")
    refused(
        logins.node, "SET SESSION AUTHORIZATION effillm_api_login", "permission denied to set session authorization"
    )
    refused(logins.fleet, "SELECT 1 FROM api_key")
    refused(logins.fleet, "INSERT INTO measurement DEFAULT VALUES")


def test_a_table_that_nobody_granted_is_closed_to_fleet_and_workers(logins: Logins) -> None:
    for role, engine in ((grants.FLEET, logins.fleet), (grants.WORKER, logins.node)):
        for table in metadata.tables.keys() - grants.GRANTS[role].keys():
            refused(engine, f"SELECT 1 FROM {table}")


def test_the_api_cannot_rewrite_its_audit_or_the_schemas_version(logins: Logins) -> None:
    for statement in (
        "UPDATE audit SET actor = 'x'",
        "DELETE FROM audit",
        "DELETE FROM alembic_version",
        "DROP TABLE audit",
    ):
        refused(logins.api, statement, "permission denied|must be owner")


def test_a_node_touches_no_other_nodes_device(logins: Logins) -> None:
    with logins.api.begin() as c:
        submit(c, cell(), cell(batch_size=2))
    elsewhere(logins.attic)
    with logins.node.begin() as c:
        assert queue.lease(c, request(OTHER)) is None
        assert queue.quarantine(c, OTHER, BOOT, "gone") is False
        assert queue.attest(c, OTHER, BOOT) is False
        assert queue.heartbeat(c, OTHER, BOOT) is False
    with logins.node.connect() as c, pytest.raises(ProgrammingError, match="row-level security"):
        queue.register_device(c, declaration(OTHER), BOOT)
    with logins.node.connect() as c, pytest.raises(ProgrammingError, match="row-level security"):
        queue.register_device(c, declaration("new").model_copy(update={"node": "attic"}), BOOT)
    with logins.api.begin() as c:
        device = queries.device(c, OTHER)
        assert device is not None
        assert (device.state, device.node) == (DeviceState.FREE, "attic")


def test_a_node_ends_no_other_nodes_lease_and_adds_nothing_to_its_measurement(logins: Logins) -> None:
    elsewhere(logins.attic)
    with logins.api.begin() as c:
        submit(c, cell(), cell(batch_size=2))
    with logins.attic.begin() as c:
        lease = leased(c, OTHER)
    with logins.node.connect() as c, pytest.raises(ProgrammingError, match="another node"):
        queue.finish(c, OTHER, BOOT, lease.job_id, lease.fence, crashed())
    for statement, why in (
        (f"UPDATE job SET device_id = '{OTHER}', boot_id = 'x' WHERE id = {lease.job_id}", "another node"),
        (f"UPDATE job SET lease_expires_at = now() + '1 day' WHERE id = {lease.job_id}", "another node"),
        (f"INSERT INTO lease_device VALUES ('{OTHER}', {lease.job_id}, 9, 'x')", "row-level security|duplicate key"),
        ("INSERT INTO attempt (job_id, fence, device_id, node, boot_id) "
         f"VALUES ({lease.job_id}, 9, '{OTHER}', 'attic', 'x')", "row-level security"),
    ):  # fmt: skip
        refused(logins.node, statement, why)
    with logins.node.begin() as c:
        for table in ("attempt", "lease_device", "child"):
            assert c.execute(text(f"SELECT count(*) FROM {table}")).scalar() == 0
    with logins.attic.begin() as c:
        assert queue.finish(c, OTHER, BOOT, lease.job_id, lease.fence, measured()).accepted
    refused(
        logins.node,
        f"INSERT INTO sample VALUES ({lease.job_id}, {lease.fence}, 99, 99, 'measured', 1, '{{1,2}}', false)",
        "measurement of another node",
    )


def test_urls_are_kept_until_they_are_rotated_and_only_their_owner_reads_them(
    database_url: str, tmp_path: Path
) -> None:
    login = roles.parse_login(f"fleet={tmp_path / 'url'}")
    assert roles.secure(database_url, [login]) == {"effillm_fleet_login"}
    first = login.file.read_text()
    assert stat.S_IMODE(login.file.stat().st_mode) == 0o400
    assert roles.secure(database_url, [login]) == set()
    assert login.file.read_text() == first
    assert roles.secure(database_url, [login], rotate=True) == {"effillm_fleet_login"}
    assert login.file.read_text() != first


def test_no_password_is_said_or_kept_in_the_clear(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EFFILLM_DATABASE_URL", database_url)
    assert roles.main(["--login", f"node:box={tmp_path / 'url'}"]) == 0
    password = roles._password(tmp_path / "url")
    assert password
    said = capsys.readouterr()
    assert password not in said.out + said.err
    owner = connect(database_url, "api")
    with owner.begin() as c:
        kept = c.execute(text("SELECT rolpassword FROM pg_authid WHERE rolname = 'effillm_node:box'")).scalar()
    owner.dispose()
    assert kept.startswith("SCRAM-SHA-256$")


@pytest.mark.parametrize("wrong", ["api", "worker=/x", "node:=", "node:a b=/x", "node:a'b=/x", f"node:{'n' * 60}=/x"])
def test_a_login_that_is_none_is_refused(wrong: str) -> None:
    with pytest.raises(BadInput, match="expected api=FILE"):
        roles.parse_login(wrong)


def test_a_login_without_the_right_to_make_roles_is_told_which_it_takes(database_url: str, tmp_path: Path) -> None:
    login = roles.parse_login(f"api={tmp_path / 'url'}")
    roles.secure(database_url, [login])
    with pytest.raises(BadInput, match="run this as the owner of the database"):
        roles.secure(login.file.read_text())


def test_a_database_that_does_not_answer_and_a_folder_that_takes_no_file_are_named(
    database_url: str, tmp_path: Path
) -> None:
    with pytest.raises(Unavailable, match="does not answer"):
        roles.secure("postgresql://x@127.0.0.1:1/x")
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="cannot be written"):
        roles.secure(database_url, [roles.parse_login(f"api={tmp_path}/file/url")])
