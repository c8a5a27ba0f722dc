"""A lab of several people: Ada with a lab sweep and a private one, Bob, a reader, keys that have ended."""

from __future__ import annotations

from dataclasses import dataclass

from effillm_server.api import examples
from tests.support.api import Api, add_device, declaration, finish, lease, measured
from tests.support.keys import ADMIN_KEY, bearer, make_key

PRIVATE_NAME = "ada's secret plan"


@dataclass(frozen=True)
class Lab:
    """`keys` by who holds them; ids of Ada's private sweep and of her lab sweep, and a job of each."""

    api: Api
    keys: dict[str, str]
    private: str
    private_jobs: tuple[int, ...]
    shared: str
    shared_job: int
    busy_device: str


def furnished(api: Api) -> Lab:
    """The lab on a server without anything."""
    keys = {"admin": ADMIN_KEY}
    made = {
        "ada": make_key(api, "ada", "submit"), "bob": make_key(api, "bob", "submit"),
        "reader": make_key(api, "carol", "read"), "revoked": make_key(api, "dan", "admin"),
        "expired": make_key(api, "eve", "admin", lifetime_days=1),
    }  # fmt: skip
    keys |= {who: key["key"] for who, key in made.items()}
    assert api.http.delete(f"/v1/keys/{made['revoked']['id']}", headers=bearer(ADMIN_KEY)).status_code == 200
    with api.engine.begin() as c:
        c.exec_driver_sql("UPDATE api_key SET expires_at = clock_timestamp() - interval '1 s' WHERE owner = 'eve'")
    device = add_device(api.engine)
    add_device(api.engine, declaration("bench-2-cpu"), boot_id="boot-2")
    sweeps = {}
    for visibility, title in (("lab", "for all to see"), ("private", PRIVATE_NAME)):
        body = examples.DEFINITION | {"name": title, "visibility": visibility}
        answer = api.http.post("/v1/sweeps", json=body, headers=bearer(keys["ada"]))
        assert answer.status_code == 201, answer.text
        sweeps[visibility] = answer.json()["id"]
        for _ in range(4 if visibility == "lab" else 2):
            held = lease(api.engine)
            finish(api.engine, held, measured(held))
    held = lease(api.engine)  # what the device does from now on
    listed = {
        visibility: api.http.get(f"/v1/sweeps/{sweep}/jobs", headers=bearer(keys["ada"])).json()["items"]
        for visibility, sweep in sweeps.items()
    }
    jobs = tuple(job["id"] for job in listed["private"])
    assert held.job_id in jobs
    return Lab(api, keys, sweeps["private"], jobs, sweeps["lab"], listed["lab"][0]["id"], device)
