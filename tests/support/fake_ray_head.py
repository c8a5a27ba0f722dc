"""A Ray head that answers one question: is it alive, which Ray is it, does it want a token."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
from ray.core.generated.gcs_service_pb2 import CheckAliveReply

from effillm_worker.head import CHECK_ALIVE


class _Answers(grpc.GenericRpcHandler):
    def __init__(self, ray_version: str, token: str | None) -> None:
        self._version = ray_version
        self._token = token

    def service(self, handler_call_details: Any) -> Any:
        if handler_call_details.method != CHECK_ALIVE:
            return None
        sent = dict(handler_call_details.invocation_metadata).get("authorization")

        def answer(_: bytes, context: grpc.ServicerContext) -> Any:
            if self._token is not None and sent != f"Bearer {self._token}":
                context.abort(grpc.StatusCode.UNAUTHENTICATED, "InvalidAuthToken")
            return CheckAliveReply(ray_version=self._version)

        return grpc.unary_unary_rpc_method_handler(answer, response_serializer=CheckAliveReply.SerializeToString)


@contextmanager
def fake_ray_head(ray_version: str, token: str | None = None) -> Iterator[str]:
    """Address of a head of this version; with a token it refuses whoever does not send it."""
    server = grpc.server(ThreadPoolExecutor(2), handlers=[_Answers(ray_version, token)])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()
