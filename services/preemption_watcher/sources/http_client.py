"""HTTP to metadata servers and APIs: bounded in time and size, with the world's two failures."""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx

from libs.kernel.errors import ConfigError, ContractViolation, Unavailable
from libs.kernel.units import MIB, NS_PER_S, seconds

BODY_BYTES_MAX: Final = MIB
"""A longer answer is refused; a metadata server's is a few hundred bytes."""
TIMEOUT_NS: Final = 3 * NS_PER_S
"""For a whole request: a metadata server answers in milliseconds."""
RETRY_AFTER_NS: Final = NS_PER_S
REASON_CHARACTERS_MAX: Final = 200
NO_HEADERS: Final[Mapping[str, str]] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpAnswer:
    """A whole response; header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def text(self) -> str:
        """Return the body as text. Raises: ContractViolation if it is not UTF-8."""
        try:
            return self.body.decode()
        except UnicodeDecodeError:
            raise ContractViolation("the answer is not UTF-8") from None


class HttpClient:
    """One base URL, which `setting` names. No proxy is asked for link-local servers.

    Raises: ConfigError if the URL or the file cannot be used.
    """

    def __init__(
        self,
        base_url: str,
        *,
        setting: str,
        ca_file: Path | None = None,
        uses_proxies: bool = False,
    ) -> None:
        url = _checked(base_url, setting)
        self._client = httpx.AsyncClient(
            base_url=url,
            # Reading the system's certificates takes 20 ms, which plain HTTP need not wait for.
            verify=_trust(ca_file) if url.scheme == "https" else False,
            trust_env=uses_proxies,
            follow_redirects=False,
            timeout=None,  # `send` bounds the whole of a request instead of each of its parts.
        )

    async def send(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] = NO_HEADERS,
        content: bytes | None = None,
        timeout_ns: int = TIMEOUT_NS,
    ) -> HttpAnswer:
        """Return the answer, whatever its status.

        Raises: Unavailable if there is none in time; ContractViolation if it is too long.
        """
        async with (
            _translated(timeout_ns),
            self._client.stream(method, path, headers=dict(headers), content=content) as response,
        ):
            body = b""
            async for chunk in response.aiter_bytes():
                body += chunk
                if len(body) > BODY_BYTES_MAX:
                    raise ContractViolation(f"an answer of more than {BODY_BYTES_MAX} bytes")
            return HttpAnswer(
                status=response.status_code, headers=_lowered(response.headers), body=body
            )

    async def open_stream(
        self, path: str, *, headers: Mapping[str, str], timeout_ns: int = TIMEOUT_NS
    ) -> httpx.Response:
        """Begin a GET whose body comes over time; the caller closes it. Raises: Unavailable."""
        request = self._client.build_request("GET", path, headers=dict(headers))
        async with _translated(timeout_ns):
            return await self._client.send(request, stream=True)

    async def close(self) -> None:
        """Close all connections."""
        await self._client.aclose()


def unexpected(answer: HttpAnswer) -> Unavailable:
    """Return what an answer means whose status is none that the source knows."""
    said = answer.body[:REASON_CHARACTERS_MAX].decode(errors="replace")
    words = " ".join(said.split())
    return Unavailable(f"HTTP {answer.status}: {words}", retry_after_ns=RETRY_AFTER_NS)


def json_object(body: bytes | str) -> dict[str, Any]:
    """Return the JSON object. Raises: ContractViolation if it is none."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        raise ContractViolation("the answer is not JSON") from None
    if not isinstance(value, dict):
        raise ContractViolation("the answer is not a JSON object")
    return value


def text_field(value: Mapping[str, Any], name: str) -> str:
    """Return the field. Raises: ContractViolation if it is missing or no text."""
    field = value.get(name)
    if not isinstance(field, str):
        raise ContractViolation(f"{name}: must be text")
    return field


@asynccontextmanager
async def translated_errors() -> AsyncIterator[None]:
    """Turn what httpx raises into Unavailable."""
    try:
        yield
    except httpx.HTTPError as error:
        reason = str(error) or type(error).__name__
        raise Unavailable(reason, retry_after_ns=RETRY_AFTER_NS) from None


@asynccontextmanager
async def _translated(timeout_ns: int) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(seconds(timeout_ns)), translated_errors():
            yield
    except TimeoutError:
        raise Unavailable(
            f"no answer in {seconds(timeout_ns):g} s", retry_after_ns=RETRY_AFTER_NS
        ) from None


def _lowered(headers: httpx.Headers) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


def _checked(base_url: str, setting: str) -> httpx.URL:
    try:
        url = httpx.URL(base_url)
    except httpx.InvalidURL as error:
        raise ConfigError(f"{setting}: {base_url!r}: {error}") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise ConfigError(f"{setting}: {base_url!r} is no http or https URL")
    return url


def _trust(ca_file: Path | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=None if ca_file is None else str(ca_file))
    except OSError as error:
        raise ConfigError(f"ca_file: {ca_file}: {error.strerror or error}") from None
