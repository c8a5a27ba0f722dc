"""The model hub, read-only: a model's configuration, revision and size, and nothing that is executed."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import httpx

ENDPOINT = "https://huggingface.co"
TIMEOUT_S = 5.0
MAX_CONFIG_BYTES = 2**20
CONVERTER = "SFconvertbot"
# A hub that does not answer is not asked again for a while, or a sweep of twenty models would wait twenty time-outs.
PAUSE_S = 30.0


class HubRefused(Exception):
    """The hub gave no model: it has none of that name, wants a token, or does not answer. The message says which."""


class HubUnreachable(HubRefused):
    """No answer from the hub at all."""


@dataclass(frozen=True)
class HubModel:
    """What the hub says: the commit its answer belongs to, the parsed config.json, the parameter count where it knows one."""

    revision: str
    config: dict[str, Any]
    parameters: int | None


class HubClient:
    """Reads one hub over HTTP. `HF_ENDPOINT` and `HF_TOKEN` of the environment apply."""

    def __init__(
        self, environment: Mapping[str, str] | None = None, transport: httpx.BaseTransport | None = None
    ) -> None:
        source = os.environ if environment is None else environment
        self.endpoint = (source.get("HF_ENDPOINT") or ENDPOINT).rstrip("/")
        token = source.get("HF_TOKEN")
        headers = {"authorization": f"Bearer {token}"} if token else {}
        self._client = httpx.Client(
            base_url=self.endpoint, headers=headers, timeout=TIMEOUT_S, transport=transport, follow_redirects=False
        )
        self._silent_until = 0.0
        self._silence = ""

    def revision(self, model: str, revision: str | None = None) -> str:
        """The commit that `revision` stands for. Raises HubRefused.

        Default: main, or where that has pickled weights only, the hub's own conversion of them to safetensors.
        """
        return str(self._found(model, revision)["sha"])

    def model(self, model: str, revision: str | None = None) -> HubModel:
        """Configuration and size at a pinned revision. Raises HubRefused."""
        info = self._found(model, revision)
        commit = str(info["sha"])
        config = self._json(f"/{model}/resolve/{commit}/config.json", model)
        counted = info.get("safetensors")
        parameters = counted.get("total") if isinstance(counted, dict) else None
        # Packed weights count storage words, not parameters.
        known = isinstance(parameters, int) and "quantization_config" not in config
        return HubModel(commit, config, parameters if known else None)

    def close(self) -> None:
        """Closes the connections."""
        self._client.close()

    def _found(self, model: str, revision: str | None) -> dict[str, Any]:
        """What the hub says of the revision asked for, or of the safest one where none was."""
        info = self._model(model, revision)
        if revision is not None or not _is_pickled_only(info):
            return info
        try:
            number = self._conversion(model)
            return info if number is None else self._model(model, f"refs/pr/{number}")
        except HubUnreachable:
            raise
        except HubRefused:
            return info  # without its conversion the model is what it is, and the worker says so

    def _conversion(self, model: str) -> int | None:
        """Number of the pull request in which the hub's own bot offers the weights as safetensors."""
        offered = self._json(f"/api/models/{model}/discussions", model).get("discussions")
        for entry in offered if isinstance(offered, list) else ():
            author = entry.get("author") if isinstance(entry, dict) else None
            name = author.get("name") if isinstance(author, dict) else author
            if name == CONVERTER and entry.get("isPullRequest") is True and isinstance(entry.get("num"), int):
                return int(entry["num"])
        return None

    def _model(self, model: str, revision: str | None) -> dict[str, Any]:
        info = self._json(f"/api/models/{model}/revision/{quote(revision or 'main', safe='')}", model)
        if not isinstance(info.get("sha"), str):
            raise HubRefused(f"{self.endpoint} answered without a revision of {model}")
        return info

    def _json(self, path: str, model: str) -> dict[str, Any]:
        if time.monotonic() < self._silent_until:
            raise HubUnreachable(self._silence)
        try:
            with self._client.stream("GET", path) as answer:
                self._judge(answer.status_code, model)
                return self._object(self._body(answer))
        except httpx.HTTPError as error:
            self._silence = f"{self.endpoint} cannot be reached ({type(error).__name__})"
            self._silent_until = time.monotonic() + PAUSE_S
            raise HubUnreachable(self._silence) from None

    def _judge(self, status: int, model: str) -> None:
        if status == httpx.codes.OK:
            return
        if status in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
            raise HubRefused(
                f"{self.endpoint} shows {model} to nobody without access: it does not exist, or is gated or private "
                "(accept its licence there and set HF_TOKEN)"
            )
        if status == httpx.codes.NOT_FOUND:
            raise HubRefused(f"{self.endpoint} has no such model or revision")
        raise HubRefused(f"{self.endpoint} answered with status {status}")

    def _body(self, answer: httpx.Response) -> bytes:
        body = b""
        for chunk in answer.iter_bytes():
            body += chunk
            if len(body) > MAX_CONFIG_BYTES:
                raise HubRefused(f"{self.endpoint} sent more than {MAX_CONFIG_BYTES:,} bytes for a configuration")
        return body

    def _object(self, body: bytes) -> dict[str, Any]:
        try:
            value = json.loads(body)
        except (ValueError, RecursionError):
            raise HubRefused(f"{self.endpoint} sent no JSON") from None
        if not isinstance(value, dict):
            raise HubRefused(f"{self.endpoint} sent JSON that is no object")
        return value


def _is_pickled_only(info: dict[str, Any]) -> bool:
    """Whether the hub lists weights, and none of them as safetensors."""
    siblings = info.get("siblings")
    names = (
        [str(file.get("rfilename")) for file in siblings if isinstance(file, dict)]
        if isinstance(siblings, list)
        else []
    )
    return any(name.endswith((".bin", ".pt", ".pth")) for name in names) and not any(
        name.endswith(".safetensors") for name in names
    )
