"""A gateway's Files and Batch API, as `tideserve batch` asks it."""

import json
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import quote

import httpx

from libs.kernel.errors import ConfigError, Unavailable
from libs.kernel.units import NS_PER_S

TIMEOUT_S: Final = 60.0
ATTEMPTS: Final = 4
PAUSE_S: Final = 0.5
PARTIAL_SUFFIX: Final = ".part"

BatchObject = Mapping[str, Any]


class GatewayRefused(Exception):
    """The gateway says no; its message says why."""


class BatchApi:
    """One gateway. Whatever it cannot answer for a moment is asked again, and never done twice.

    Every method raises GatewayRefused, or Unavailable where no gateway answers.
    """

    def __init__(self, url: str, *, tenant: str = "", api_key: str = "") -> None:
        """Raises: ConfigError if that is no URL."""
        self._url = url.rstrip("/").removesuffix("/v1")
        headers = {"x-tenant": tenant} if tenant else {}
        if api_key:
            headers["authorization"] = f"Bearer {api_key}"
        try:
            self._http = httpx.Client(
                base_url=f"{self._url}/v1", headers=headers, timeout=TIMEOUT_S
            )
        except httpx.InvalidURL as error:
            raise ConfigError(f"--url: {error}") from None
        if not self._url.startswith(("http://", "https://")):
            raise ConfigError("--url: must begin with http:// or https://")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def upload(self, path: Path) -> str:
        """Send a file of requests, without holding it; return its id."""
        with path.open("rb") as file:
            answer = self._ask(
                "POST",
                "/files",
                data={"purpose": "batch"},
                files={"file": (path.name, file, "application/jsonl")},
            )
        file_id: str = answer["id"]
        return file_id

    def create(self, request: Mapping[str, Any]) -> BatchObject:
        """Make a batch; repeated where the answer was lost, it is still one batch."""
        headers = {"idempotency-key": secrets.token_hex(16)}
        return self._ask_patiently("POST", "/batches", json=request, headers=headers)

    def get(self, batch_id: str) -> BatchObject:
        """Return the batch as it is now."""
        return self._ask_patiently("GET", f"/batches/{quote(batch_id, safe='')}")

    def newest(self, limit: int) -> list[BatchObject]:
        """Return the newest batches."""
        batches: list[BatchObject] = []
        query: dict[str, Any] = {}
        while len(batches) < limit:
            query["limit"] = min(100, limit - len(batches))
            page = self._ask_patiently("GET", "/batches", params=query)
            batches += page["data"]
            if not page["has_more"]:
                break
            query["after"] = page["last_id"]
        return batches

    def act(self, batch_id: str, verb: str) -> BatchObject:
        """Cancel, pause or resume."""
        return self._ask("POST", f"/batches/{quote(batch_id, safe='')}/{verb}")

    def download(self, file_id: str, target: Path) -> None:
        """Write a file's bytes; the target is there once it is complete."""
        partial = target.with_name(target.name + PARTIAL_SUFFIX)
        with (
            self._reached(),
            self._http.stream("GET", f"/files/{quote(file_id, safe='')}/content") as response,
        ):
            _require_success(response)
            with partial.open("wb") as file:
                for chunk in response.iter_bytes():
                    file.write(chunk)
        partial.replace(target)

    def _ask_patiently(self, method: str, path: str, **arguments: Any) -> BatchObject:
        """Ask again where nobody answers, or not for now; for what may be asked twice."""
        for _ in range(ATTEMPTS - 1):
            try:
                return self._ask(method, path, **arguments)
            except Unavailable:
                time.sleep(PAUSE_S)
        return self._ask(method, path, **arguments)

    def _ask(self, method: str, path: str, **arguments: Any) -> BatchObject:
        with self._reached():
            response = self._http.request(method, path, **arguments)
            _require_success(response)
        try:
            answer: BatchObject = response.json()
        except ValueError:
            raise GatewayRefused(f"{self._url} does not answer as a gateway does") from None
        return answer

    @contextmanager
    def _reached(self) -> Iterator[None]:
        try:
            yield
        except httpx.HTTPError as error:
            message = f"no gateway answers at {self._url}: {error or type(error).__name__}"
            raise Unavailable(message, retry_after_ns=NS_PER_S) from error


def _require_success(response: httpx.Response) -> None:
    """Raises: GatewayRefused; Unavailable where the same may succeed later."""
    if response.is_success:
        return
    message = _message_of(response.read().decode(errors="replace"))
    told = message or f"{response.status_code} {response.reason_phrase}"
    if response.status_code in (httpx.codes.SERVICE_UNAVAILABLE, httpx.codes.TOO_MANY_REQUESTS):
        raise Unavailable(told, retry_after_ns=NS_PER_S)
    raise GatewayRefused(told)


def _message_of(body: str) -> str:
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return ""
