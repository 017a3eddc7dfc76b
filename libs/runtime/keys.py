"""How a key-value bucket lies in a stream; both buses follow the layout of NATS."""

import re
from collections.abc import Mapping
from typing import Final

from libs.kernel.errors import ContractViolation
from libs.kernel.units import NS_PER_S
from libs.runtime.bus import (
    Entry,
    KeyDeleted,
    KeyEvent,
    KeyUpdated,
    StorageName,
    StoredMessage,
    StreamOptions,
)

OPERATION_HEADER: Final = "KV-Operation"
DELETE_HEADERS: Final[Mapping[str, str]] = {OPERATION_HEADER: "DEL"}
MARKER_HEADER: Final = "Nats-Marker-Reason"
"""What servers from 2.11 on put on a marker that they wrote themselves."""
BUCKET_MESSAGES_MAX: Final = 1_000_000
DUPLICATE_WINDOW_NS: Final = 120 * NS_PER_S

_KEY = re.compile(r"[A-Za-z0-9_=/-]+(\.[A-Za-z0-9_=/-]+)*")
_BUCKET = re.compile(r"[A-Za-z0-9_-]+")


def require_bucket(name: str) -> None:
    """Raise ContractViolation unless a bucket may have this name."""
    if not _BUCKET.fullmatch(name):
        raise ContractViolation(f"not a bucket name: {name!r}")


def bucket_stream(name: str) -> str:
    """Return the name of the stream that holds the bucket."""
    return f"KV_{name}"


def bucket_options(
    name: str,
    *,
    bytes_max: int,
    age_max_ns: int | None,
    storage: StorageName,
) -> StreamOptions:
    """Return the stream of a bucket: full refuses a new key, and each key keeps its newest."""
    require_bucket(name)
    window_ns = DUPLICATE_WINDOW_NS
    return StreamOptions(
        name=bucket_stream(name),
        subjects=(f"$KV.{name}.>",),
        messages_max=BUCKET_MESSAGES_MAX,
        bytes_max=bytes_max,
        age_max_ns=age_max_ns,
        messages_per_subject_max=1,
        duplicate_window_ns=window_ns if age_max_ns is None else min(window_ns, age_max_ns),
        storage=storage,
    )


def key_subject(bucket: str, key: str) -> str:
    """Return the subject of a key. Raises: ContractViolation for what cannot be a key."""
    if not _KEY.fullmatch(key):
        raise ContractViolation(f"not a key: {key!r}")
    return f"$KV.{bucket}.{key}"


def is_deleted(message: StoredMessage) -> bool:
    """Tell whether the message marks the end of its key."""
    return OPERATION_HEADER in message.headers or MARKER_HEADER in message.headers


def entry_of(message: StoredMessage | None) -> Entry | None:
    """Read the newest message of a key."""
    if message is None or is_deleted(message):
        return None
    return Entry(value=message.payload, revision=message.sequence)


def event_of(bucket: str, message: StoredMessage) -> KeyEvent:
    """Read a message as a change of its key."""
    key = message.subject[len(f"$KV.{bucket}.") :]
    if is_deleted(message):
        return KeyDeleted(key=key, revision=message.sequence)
    return KeyUpdated(key=key, value=message.payload, revision=message.sequence)


def live_keys(bucket: str, messages: list[StoredMessage]) -> list[str]:
    """Return the keys that exist after these messages of the bucket, sorted."""
    newest = {message.subject: message for message in messages}
    prefix_length = len(f"$KV.{bucket}.")
    return sorted(
        subject[prefix_length:] for subject, message in newest.items() if not is_deleted(message)
    )
