"""JetStream's API as JSON over request and reply, and its errors as ours.

The project speaks the API itself rather than through nats-py's JetStream layer: durations stay
integer nanoseconds, every error keeps its code, and what an old server drops can be seen.
"""

import base64
import json
import re
from collections.abc import Mapping
from typing import Any, Final, TypeAlias

from libs.kernel.errors import ConfigError, Unavailable
from libs.runtime.bus import (
    BUS_TIMEOUT_NS,
    BusRefusal,
    NoResponders,
    PayloadTooLarge,
    StoredMessage,
    StreamFull,
    StreamMissing,
    WrongLastSequence,
)
from libs.runtime.nats_connection import RETRY_AFTER_NS, NatsConnection

CONSUMER_MISSING: Final = 10014
JETSTREAM_NOT_ENABLED_FOR_ACCOUNT: Final = 10039
JETSTREAM_NOT_ENABLED: Final = 10076
MESSAGE_MISSING: Final = 10037
MESSAGE_TOO_LARGE: Final = 10054
SEQUENCE_MISSING: Final = 10043
STORE_FAILED: Final = 10077
STREAM_MISSING: Final = 10059
STREAM_NAME_IN_USE: Final = 10058
WRONG_LAST_SEQUENCE: Final = frozenset({10071, 10164})
STORE_LIMITS: Final = ("maximum messages", "maximum bytes", "maximum per subject")

Json: TypeAlias = dict[str, Any]
"""What json.loads yields; the one place where Any is meant, like a codec."""


class ApiRefusal(BusRefusal):
    """An error of the JetStream API that has no type of its own."""

    def __init__(self, *, code: int, description: str) -> None:
        super().__init__(f"{description} ({code})")
        self.code = code
        self.description = description


async def call(
    connection: NatsConnection,
    endpoint: str,
    body: Mapping[str, object] | None = None,
    *,
    timeout_ns: int = BUS_TIMEOUT_NS,
) -> Json:
    """Call one endpoint below `$JS.API.` and return its answer.

    Raises: the refusal that the answer carries; Unavailable; ConfigError without JetStream.
    """
    payload = b"" if body is None else json.dumps(body).encode()
    try:
        message = await connection.request(f"$JS.API.{endpoint}", payload, timeout_ns=timeout_ns)
    except NoResponders:
        raise Unavailable(
            "the NATS server runs without JetStream, or its leader is away",
            retry_after_ns=RETRY_AFTER_NS,
        ) from None
    return checked(message.data)


def checked(payload: bytes) -> Json:
    """Decode an answer; raise the refusal that it carries."""
    answer: Json = json.loads(payload)
    error = answer.get("error")
    if error is not None:
        raise refusal(error)
    return answer


def refusal(error: Json) -> Exception:
    """Return the exception for an error object of the API."""
    status = int(error.get("code", 0))
    code = int(error.get("err_code", status))
    description = str(error.get("description", "no description"))
    if code in WRONG_LAST_SEQUENCE:
        actual = re.search(r"(\d+)\s*$", description)
        return WrongLastSequence(
            description, actual_sequence=None if actual is None else int(actual[1])
        )
    if code == MESSAGE_TOO_LARGE:
        return PayloadTooLarge(description)
    if code == STORE_FAILED and description.startswith(STORE_LIMITS):
        return StreamFull(description)
    if code in (STREAM_MISSING, CONSUMER_MISSING):
        return StreamMissing(description)
    if code in (JETSTREAM_NOT_ENABLED, JETSTREAM_NOT_ENABLED_FOR_ACCOUNT):
        return ConfigError(f"nats: {description}")
    if status == 503:
        return Unavailable(f"{description} ({code})", retry_after_ns=RETRY_AFTER_NS)
    return ApiRefusal(code=code, description=description)


def stored_message(found: Json) -> StoredMessage:
    """Read a message out of a STREAM.MSG.GET answer."""
    return StoredMessage(
        sequence=int(found["seq"]),
        subject=str(found["subject"]),
        payload=base64.b64decode(found.get("data", "")),
        headers=_headers(base64.b64decode(found.get("hdrs", ""))),
    )


def _headers(block: bytes) -> dict[str, str]:
    headers: dict[str, str] = {}
    for line in block.split(b"\r\n")[1:]:
        name, separator, value = line.partition(b":")
        if separator:
            headers[name.decode().strip()] = value.decode("utf-8", "replace").strip()
    return headers
