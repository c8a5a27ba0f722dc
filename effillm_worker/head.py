"""What a Ray head says before anything of ours joins it: whether it answers, asks for a token, and which versions it runs."""

from __future__ import annotations

import importlib
import ipaddress
import os
import platform
import secrets
import socket
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from effillm_server.errors import BadInput, Unavailable

ANSWER_WITHIN_S = 5.0
NODE_LABEL = "effillm.io/node"
START_LABEL = "effillm.io/start"
CHECK_ALIVE = "/ray.rpc.NodeInfoGcsService/CheckAlive"


@dataclass(frozen=True)
class Versions:
    """What must be equal on all nodes of a Ray cluster."""

    ray: str
    python: str


def own_versions() -> Versions:
    """Versions of this process."""
    import ray

    return Versions(ray=ray.__version__, python=platform.python_version())


def check_versions(head: Versions, own: Versions) -> None:
    """Raises BadInput when a node with `own` versions cannot join a cluster whose head has `head` versions."""
    differing = [
        f"{name} is {mine} here and {theirs} on the head"
        for name, mine, theirs in (("Ray", own.ray, head.ray), ("Python", own.python, head.python))
        if mine != theirs
    ]
    if differing:
        raise BadInput(
            f"{' and '.join(differing)}; a Ray cluster needs the same on every node: "
            f"install ray=={head.ray} under Python {head.python} on this box"
        )


def head_versions(address: str) -> Versions:
    """Versions of the head at `address`. Raises Unavailable when it does not answer, BadInput when it refuses our token."""
    ray_version = _check_alive(address, os.environ)
    own = own_versions()
    if ray_version != own.ray:
        # Another release may speak another protocol, so its Python version is not asked for.
        return Versions(ray=ray_version, python=own.python)
    from ray._common.usage.usage_lib import get_cluster_metadata

    try:
        metadata = get_cluster_metadata(_gcs(address))
    except (RuntimeError, AttributeError) as error:
        # AttributeError: the head is up and has not stored its metadata yet.
        raise Unavailable(f"the Ray head at {address} does not say which versions it runs: {error}") from error
    return Versions(ray=str(metadata["ray_version"]), python=str(metadata["python_version"]))


def check_token(address: str) -> None:
    """Raises BadInput unless the cluster at `address` asks for a token or is reached by loopback only."""
    if is_loopback(address):
        return
    try:
        _check_alive(address, {})
    except BadInput:
        return
    raise BadInput(
        f"the Ray cluster at {address} runs anybody's code without a token: start its head by `effillm node --head` or with "
        "RAY_AUTH_MODE=token"
    )


def answers(address: str) -> bool:
    """Whether a head answers at `address` at all."""
    try:
        _check_alive(address, os.environ)
    except Unavailable:
        return False
    return True


def is_loopback(address: str) -> bool:
    """Whether host:port names this machine's loopback interface."""
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def is_registered(address: str, start: str) -> bool:
    """Whether the head counts the node of this start among the living. Its name would not do: after a crash the head believes
    in the node before for half a minute."""
    from ray.core.generated.gcs_pb2 import GcsNodeInfo

    nodes = _gcs(address).get_all_node_info().values()
    return any(info.state == GcsNodeInfo.ALIVE and info.labels.get(START_LABEL) == start for info in nodes)


def use_token(environment: MutableMapping[str, str], path: Path | None) -> None:
    """Switch token authentication on for Ray in `environment`, with the token in `path`."""
    environment["RAY_AUTH_MODE"] = "token"
    if path is not None:
        environment["RAY_AUTH_TOKEN_PATH"] = str(path)
        # The variable would win over the file.
        environment.pop("RAY_AUTH_TOKEN", None)


def ensure_token(path: Path) -> Path:
    """The token file, made with a fresh random token when there is none; only its owner may read it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return path
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_hex(32))
    return path


def token_file(data_dir: Path) -> Path:
    """Where a head keeps its token unless told otherwise."""
    return data_dir / "ray-token"


def is_taken(port: int) -> bool:
    """Whether somebody on this box listens on `port`."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return True
    return False


def _gcs(address: str) -> Any:
    """Ray's client of its head's tables; a compiled class without types."""
    return importlib.import_module("ray._raylet").GcsClient(address=address)


def _check_alive(address: str, environment: Mapping[str, str]) -> str:
    """Ray's version on the head, asked by one plain call: it needs neither a matching release nor a node of our own."""
    import grpc
    from ray.core.generated.gcs_service_pb2 import CheckAliveReply

    token = _token(environment)
    with grpc.insecure_channel(address) as channel:
        call = channel.unary_unary(CHECK_ALIVE, response_deserializer=CheckAliveReply.FromString)
        try:
            reply = call(b"", timeout=ANSWER_WITHIN_S, metadata=[("authorization", f"Bearer {token}")] if token else [])
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.UNAUTHENTICATED:
                raise BadInput(
                    f"the Ray head at {address} refuses our token: copy the head's token file (ray-token in its data "
                    "directory) to this box and name it with --token-file"
                ) from None
            raise Unavailable(f"no Ray head answers at {address}: {error.details()}") from None
    return str(reply.ray_version)


def _token(environment: Mapping[str, str]) -> str | None:
    if environment.get("RAY_AUTH_TOKEN"):
        return environment["RAY_AUTH_TOKEN"]
    path = environment.get("RAY_AUTH_TOKEN_PATH")
    return Path(path).read_text().strip() if path else None
