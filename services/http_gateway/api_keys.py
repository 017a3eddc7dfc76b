"""Who may ask a gateway: keys from a file, each for any tenant or for one.

# KEY [TENANT]
sk-8f14e45fceea167a5a36dedd4bea2543
sk-c9f0f895fb98ab9159f51fd0297e236d  team-search
"""

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from http import HTTPStatus
from pathlib import Path
from typing import Final, Self

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from libs.kernel.errors import ConfigError
from libs.openai_api.errors import ErrorAnswer
from services.http_gateway.error_responses import answer_with
from services.http_gateway.tenants import TENANT_HEADER, TENANT_PATTERN

KEY_PATTERN: Final = "[!-~]{16,256}"
OPEN_PATHS: Final = frozenset({"/live", "/health"})
"""For probes, which hold no keys."""
CHALLENGE: Final = 'Bearer, Basic realm="tideserve", charset="UTF-8"'
"""Basic for browsers on the dashboard: any user's name, the key as password."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyHolder:
    """Whom a key lets in."""

    tenant: str | None
    """None: whoever the caller says; the key of a proxy that knows its users."""


class ApiKeys:
    """The keys of one file, kept as digests."""

    def __init__(self, holders: Mapping[str, KeyHolder]) -> None:
        self._holders = {_digest(key): holder for key, holder in holders.items()}

    @classmethod
    def read(cls, file: Path) -> Self:
        """Read a file of keys; messages name lines and never keys. Raises: ConfigError."""
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise ConfigError(f"{file}: {error.strerror}") from None
        except UnicodeDecodeError:
            raise ConfigError(f"{file}: not UTF-8") from None
        holders: dict[str, KeyHolder] = {}
        for number, line in enumerate(lines, start=1):
            words = line.split()
            if not words or words[0].startswith("#"):
                continue
            key, tenant = words[0], words[1] if len(words) > 1 else None
            if len(words) > 2 or not re.fullmatch(KEY_PATTERN, key):
                raise ConfigError(f"{file}:{number}: KEY [TENANT]; a key has 16 to 256 characters")
            if tenant is not None and not re.fullmatch(TENANT_PATTERN, tenant):
                raise ConfigError(f"{file}:{number}: a tenant is letters, digits, '_' and '-'")
            if key in holders:
                raise ConfigError(f"{file}:{number}: the same key again")
            holders[key] = KeyHolder(tenant=tenant)
        if not holders:
            raise ConfigError(f"{file}: no keys in it; nobody could ask")
        return cls(holders)

    def holder_of(self, authorization: str) -> KeyHolder | None:
        """Return whom this header lets in, if anybody."""
        scheme, _, credentials = authorization.partition(" ")
        match scheme.lower():
            case "bearer":
                key = credentials.strip()
            case "basic":
                key = _password(credentials)
            case _:
                return None
        # A lookup by digest tells nobody, by its time, how much of a key was right.
        return self._holders.get(_digest(key))


class Authentication:
    """Lets a request pass with a key that is known, and else answers 401; sets its tenant."""

    def __init__(self, app: ASGIApp, *, keys: ApiKeys) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it; see the class."""
        if scope["type"] == "http" and scope["path"] not in OPEN_PATHS:
            headers = Headers(scope=scope)
            holder = self._keys.holder_of(headers.get("authorization", ""))
            if holder is None:
                response = answer_with(WRONG_KEY)
                response.headers["www-authenticate"] = CHALLENGE
                await response(scope, receive, send)
                return
            if holder.tenant is not None:
                if headers.get(TENANT_HEADER, holder.tenant) != holder.tenant:
                    await answer_with(WRONG_TENANT)(scope, receive, send)
                    return
                scope.setdefault("state", {})["tenant"] = holder.tenant
        await self._app(scope, receive, send)


WRONG_KEY: Final = ErrorAnswer(
    status=HTTPStatus.UNAUTHORIZED,
    message="no API key, or none that is known here: send `Authorization: Bearer KEY`",
    code="invalid_api_key",
)
WRONG_TENANT: Final = ErrorAnswer(
    status=HTTPStatus.FORBIDDEN,
    message=f"{TENANT_HEADER}: this key is another tenant's",
    parameter=TENANT_HEADER,
    code="wrong_tenant",
)


def _digest(key: str) -> bytes:
    return sha256(key.encode(errors="replace")).digest()


def _password(credentials: str) -> str:
    try:
        decoded = base64.b64decode(credentials, validate=True).decode()
    except (binascii.Error, ValueError):
        return ""
    return decoded.partition(":")[2]
