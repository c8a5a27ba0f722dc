"""Small bodies that want to become large, deep ones, slow ones, many of them."""

from __future__ import annotations

import json
import socket
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import ExitStack

import httpx
import pytest

from effillm_server.api import examples
from tests.support.api import Api, serving
from tests.support.postgres import cloned

YAML = {"Content-Type": "application/yaml"}
VALID = "name: x\nmodels: [{id: facebook/opt-125m, weights: synthetic}]\nhardware: [cpu]\nquantization: [fp32]\n"
# A bomb that goes off takes minutes, or the memory; a busy machine takes seconds.
SOON_S = 20.0
# Far more than one request needs, far less than what any of these would become.
MUCH_BYTES = 200 * 2**20


@pytest.fixture(scope="module")
def lab(postgres_url: str, template_database: str) -> Iterator[Api]:
    with cloned(postgres_url, template_database) as url, serving(url) as api:
        yield api


def laughs(levels: int = 9, width: int = 9) -> str:
    lines = ["a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * width)}]" for n in range(1, levels)]
    return "\n".join(lines) + f"\nname: x\nmodels: *a{levels - 1}\n"


def merged(levels: int = 25) -> str:
    """Merge keys, each of which has the one before twice."""
    lines = ["m0: &m0 {k: v}"] + [f"m{n}: &m{n} {{<<: [*m{n - 1}, *m{n - 1}], k{n}: v}}" for n in range(1, levels)]
    return "\n".join(lines)


BOMBS = {
    "anchors": laughs(),
    "an anchor inside itself": "a: &a [*a]\nname: x",
    "merge keys": merged(),
    "a range of a billion": "batch_size: {from: 1, to: 1000000000}",
    "axes whose product is 10^30": "\n".join(
        f"{axis}: [{', '.join(str(n + 1) for n in range(10_000))}]"
        for axis in ("batch_size", "sequence_length", "generate_tokens")
    ),
    "a nest in flow style": "[" * 100_000,
    "a nest in block style": "\n".join(" " * n + "- " for n in range(600)),
    "a number of a million digits": "batch_size: " + "9" * 900_000,
    "a hexadecimal number of a million digits": "batch_size: 0x" + "f" * 900_000,
    "a base-60 number": "batch_size: " + ":".join(["59"] * 200_000),
    "a float of a huge exponent": "batch_size: 1e999999999",
    "a million short values": "batch_size: [" + "1," * 400_000 + "]",
    "a python object": "name: !!python/object/apply:os.system ['id']",
    "a python name": "name: !!python/name:os.system",
    "a binary": "name: !!binary " + "A" * 900_000,
    "many documents": "--- {}\n" * 100_000,
    "a long key": "? " + "k" * 900_000 + "\n: v",
    "comments": "#\n" * 400_000,
}


@pytest.mark.parametrize("kind", BOMBS)
def test_a_yaml_bomb_is_refused_soon_and_with_flat_memory(lab: Api, kind: str) -> None:
    bomb = BOMBS[kind]
    is_key_of_a_sweep = bomb.startswith(("batch_size", "comments", "#"))
    body = (VALID + bomb if is_key_of_a_sweep else bomb)[: 2**20]
    tracemalloc.start()
    try:
        began = time.monotonic()
        answer = lab.http.post("/v1/sweeps", content=body.encode(), headers=YAML)
        took_s = time.monotonic() - began
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    if kind == "comments":
        assert answer.json()["total"] == 1
    else:
        assert answer.status_code == 422, answer.text[:300]
        assert len(answer.text) < 5_000
    assert took_s < SOON_S, took_s
    assert peak < MUCH_BYTES, peak


JSON_BOMBS = {
    "arrays": "[" * 200_000,
    "objects": '{"a":' * 100_000,
    "balanced arrays": "[" * 100_000 + "]" * 100_000,
    "a name twice, deep": '{"name":' + "[" * 30 + "]" * 30 + "}",
    "digits": '{"batch_size": ' + "9" * 900_000 + "}",
    "a float": '{"batch_size": 1e999}',
    "not a number": '{"batch_size": NaN}',
    "infinity": '{"batch_size": -Infinity}',
    "half a pair": '{"name": "\\ud800"}',
}


@pytest.mark.parametrize("kind", JSON_BOMBS)
@pytest.mark.parametrize("path", ["/v1/sweeps", "/v1/recommendations", "/v1/keys", "/v1/session"])
def test_a_json_bomb_is_refused_by_every_route_that_reads_json(lab: Api, path: str, kind: str) -> None:
    began = time.monotonic()
    answer = lab.http.post(path, content=JSON_BOMBS[kind].encode(), headers={"Content-Type": "application/json"})
    assert answer.status_code == 422, (answer.status_code, answer.text[:300])
    assert time.monotonic() - began < SOON_S
    assert answer.headers["content-type"] == "application/problem+json"


def test_a_sweep_of_too_many_cells_is_refused_by_a_product_and_not_by_building_it(lab: Api) -> None:
    axis = list(range(1, 10_001))
    body = examples.DEFINITION | {"batch_size": axis, "sequence_length": axis, "generate_tokens": axis}
    for path in ("/v1/sweeps", "/v1/sweeps/preview"):
        answer = lab.http.post(path, json=body)
        assert answer.status_code == 422
        assert "2,000,000,000,000" in answer.json()["detail"]


def test_connections_that_never_finish_their_headers_keep_nobody_else_waiting(lab: Api) -> None:
    url = lab.http.base_url
    with ExitStack() as held:
        for _ in range(200):
            slow = held.enter_context(socket.create_connection((url.host, url.port or 0), timeout=10))
            slow.sendall(b"GET /v1/sweeps HTTP/1.1\r\nHost: localhost\r\nX-Slow: ")
        began = time.monotonic()
        assert httpx.get(f"{url}/healthz", trust_env=False, timeout=120).status_code == 200
        assert time.monotonic() - began < SOON_S


def test_headers_beyond_measure_are_refused(lab: Api) -> None:
    url = lab.http.base_url
    with socket.create_connection((url.host, url.port or 0), timeout=10) as connection:
        connection.sendall(b"GET /v1/sweeps HTTP/1.1\r\nHost: localhost\r\n")
        connection.sendall(b"X-Long: " + b"a" * 200_000 + b"\r\n\r\n")
        assert connection.recv(100).startswith((b"HTTP/1.1 400", b"HTTP/1.1 431"))


@pytest.mark.parametrize("count", [1_000, 20_000])
def test_a_form_of_many_fields_is_refused(lab: Api, count: int) -> None:
    form = "&".join(f"f{n}=1" for n in range(count))
    answer = lab.http.post("/sweeps/new", content=form, headers={"Content-Type": "application/x-www-form-urlencoded"})
    assert answer.status_code in (413, 422)


def test_the_server_is_well_after_all_of_it(lab: Api) -> None:
    stored = lab.submit()
    assert stored["total"] == 4
    assert json.loads(lab.http.get(f"/v1/sweeps/{stored['id']}").text)["state"] == "pending"
