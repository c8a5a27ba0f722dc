"""The REST client: one method per verb, every failure turned into one sentence that says what to do."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import httpx

from effillm_server.cli import claim
from effillm_server.credentials import KEY_TEXT
from effillm_server.errors import BadInput, Conflict, EffillmError, NotFound, Unavailable
from effillm_server.settings import Settings

DEFAULT_URL = "http://127.0.0.1:8750"
TIMEOUT = httpx.Timeout(60.0, connect=5.0)
# An analysis of ten thousand rows, behind others.
PATIENT_S = 600.0
PAGE = 500
SUBMIT_TRIES = 3
LATEST = "latest"


class Client:
    """Speaks to one server. Raises EffillmError subclasses only."""

    def __init__(
        self, url: str | None = None, key: str | None = None, transport: httpx.BaseTransport | None = None
    ) -> None:
        """`url` and `key` default to EFFILLM_URL and EFFILLM_API_KEY, the address then to that of a local `up`.

        An empty `key` sends none: a server started here does not know the one that the environment has for another.
        """
        self.url = (url or os.environ.get("EFFILLM_URL") or local_url() or DEFAULT_URL).rstrip("/")
        if not self.url.startswith(("http://", "https://")):
            raise BadInput(
                f"{self.url!r} is not a server address: expected http://HOST:PORT in EFFILLM_URL or --url", field="url"
            )
        key = os.environ.get("EFFILLM_API_KEY") if key is None else key
        if key and KEY_TEXT.fullmatch(key) is None:
            raise BadInput("the API key is no key: expected 32 to 200 printable characters", field="EFFILLM_API_KEY")
        headers = {"User-Agent": "effillm-cli"} | ({"Authorization": f"Bearer {key}"} if key else {})
        try:
            # An address on this box must not go through a proxy that the environment names for the internet.
            self._http = httpx.Client(
                base_url=self.url,
                headers=headers,
                timeout=TIMEOUT,
                transport=transport,
                trust_env=not is_local(self.url),
            )
        except (httpx.InvalidURL, ValueError) as error:
            raise BadInput(f"{self.url!r} is not a server address: {error}", field="url") from None

    def get(self, path: str, **params: Any) -> Any:
        """The decoded answer of GET `path`."""
        return self._request("GET", path, params=present(params)).json()

    def download(self, path: str, target: IO[bytes], **params: Any) -> None:
        """Writes the answer of GET `path` to `target` as it comes; a million rows need no more memory than one."""
        with self._explained(), self._http.stream("GET", path, params=present(params)) as response:
            if response.is_error:
                response.read()
                raise problem(response)
            for chunk in response.iter_bytes():
                target.write(chunk)

    def close(self) -> None:
        """Closes its connections."""
        self._http.close()

    def patient(self) -> Client:
        """This client, which now waits as long as the largest analysis may take."""
        self._http.timeout = httpx.Timeout(PATIENT_S, connect=TIMEOUT.connect)
        return self

    def post(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """The decoded answer of POST `path`, without a body or with one in JSON."""
        response = self._request("POST", path, **({} if body is None else {"json": body}))
        return response.json() if response.content else {}

    def delete(self, path: str) -> Any:
        """The decoded answer of DELETE `path`."""
        return self._request("DELETE", path).json()

    def pages(self, path: str, page_size: int = PAGE, **params: Any) -> Iterator[dict[str, Any]]:
        """Every item of a paged list, fetched page by page as they are used."""
        after: Any = None
        while True:
            page = self.get(path, limit=min(page_size, PAGE), after=after, **params)
            yield from page["items"]
            after = page.get("next")
            if after is None:
                return

    def submit(self, definition: bytes, *, idempotency_key: str | None = None) -> dict[str, Any]:
        """The stored sweep. A broken connection is tried again under the same key, so that it is never stored twice."""
        headers = {"Content-Type": "application/yaml", "Idempotency-Key": idempotency_key or uuid.uuid4().hex}
        for attempt in range(1, SUBMIT_TRIES + 1):
            try:
                answer = self._request("POST", "/v1/sweeps", content=definition, headers=headers).json()
                return dict(answer)
            except Unanswered:
                if attempt == SUBMIT_TRIES:
                    raise
        raise AssertionError("the loop returns or raises")

    def preview(self, definition: bytes) -> dict[str, Any]:
        """What the sweep would be, nothing stored."""
        headers = {"Content-Type": "application/yaml"}
        return dict(self._request("POST", "/v1/sweeps/preview", content=definition, headers=headers).json())

    def sweep_id(self, given: str) -> str:
        """The id meant by an id, a prefix of exactly one, or `latest`. Raises NotFound or BadInput."""
        if given == LATEST:
            newest = self.get("/v1/sweeps", limit=1)["items"]
            if not newest:
                raise NotFound("there is no sweep yet: submit one with `effillm submit FILE`")
            return str(newest[0]["id"])
        matching: list[str] = []
        for sweep in self.pages("/v1/sweeps"):
            if sweep["id"] == given:
                return given
            if given and sweep["id"].startswith(given):
                matching.append(sweep["id"])
        if not matching:
            raise NotFound(f"no sweep has an id that begins with {given!r}: `effillm ls` shows those there are")
        if len(matching) > 1:
            shown = ", ".join(matching[:5]) + (", …" if len(matching) > 5 else "")
            raise BadInput(
                f"{given!r} is the beginning of {len(matching)} sweep ids ({shown}): give more of it", field="sweep"
            )
        return matching[0]

    def _request(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        with self._explained():
            response = self._http.request(method, path, **arguments)
        if response.is_error:
            raise problem(response)
        return response

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turns what the connection may suffer into words."""
        try:
            yield
        except httpx.ConnectError as error:
            raise Unavailable(
                f"no EffiLLM server answers at {self.url} ({reason(error)}): start one with `effillm up`, "
                "or name another in EFFILLM_URL"
            ) from None
        except httpx.TimeoutException:
            raise Unanswered(f"the server at {self.url} did not answer in time: see its log, then try again") from None
        except httpx.HTTPError as error:
            raise Unanswered(f"the connection to {self.url} broke ({reason(error)}): try again") from None


class Unanswered(Unavailable):
    """The request may or may not have arrived; the client repeats it where that is safe."""


def problem(response: httpx.Response) -> EffillmError:
    """The error that a refusing answer means, in the words of its problem document."""
    try:
        document = response.json()
    except ValueError:
        document = {}
    if not isinstance(document, dict):
        document = {}
    detail = str(document.get("detail") or document.get("title") or f"the server answered {response.status_code}")
    match response.status_code:
        case 401 | 403:
            return BadInput(f"{detail}: set EFFILLM_API_KEY to a key of this server", field="EFFILLM_API_KEY")
        case 404:
            return NotFound(detail)
        case 409:
            return Conflict(detail)
        case 429:
            return Unavailable(f"{detail}: try again later")
        case status if status < 500:
            field = document.get("field")
            return BadInput("\n".join([detail, *further(document)]), field=str(field) if field else None)
        case _:
            request_id = document.get("request_id") or response.headers.get("x-request-id")
            return Unavailable(f"{detail}" + (f" (request {request_id} in the server's log)" if request_id else ""))


def further(document: dict[str, Any]) -> list[str]:
    """The problems of a document behind the first, one line each; its detail tells the first."""
    errors = document.get("errors")
    return [f"  {error['field']}: {error['message']}" for error in errors[1:]] if isinstance(errors, list) else []


def local_url() -> str | None:
    """The address of an `up` that runs on the data directory in force."""
    url = claim.running(Path(Settings.from_environment().data_dir)).get("url")
    return str(url) if url else None


def is_local(url: str) -> bool:
    """Whether the address is this box."""
    return httpx.URL(url).host in ("127.0.0.1", "localhost", "::1")


def present(params: dict[str, Any]) -> dict[str, Any]:
    """The parameters that have a value."""
    return {name: value for name, value in params.items() if value is not None}


def reason(error: Exception) -> str:
    """What a library says went wrong, without its numbers and brackets."""
    text = str(error) or type(error).__name__
    return text.split("] ", 1)[-1]
