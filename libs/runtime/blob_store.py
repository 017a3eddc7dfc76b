"""Where bytes lie that no message may carry: the files of batches, and answers that are too long.

A blob is written once under an id of ours, seen by nobody before its writer commits, whole and
durable afterwards. Two implementations, held to this by one suite: `blob_folder.FolderBlobStore`, a
folder that all processes see, and `blob_s3.S3BlobStore`, a bucket or what speaks its protocol.

    async with await store.create("file-0123456789") as writer:
        await writer.write(part)
        size_bytes = await writer.commit()      # without it, leaving the block writes nothing

Work on files and connections is done in threads; the loop never waits for a disk.
"""

import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol, Self
from urllib.parse import parse_qsl, urlsplit

from libs.kernel.errors import ConfigError, ContractViolation
from libs.kernel.units import KIB, NS_PER_S

READ_BYTES: Final = 256 * KIB
"""The most that a reader yields at once."""
RETRY_AFTER_NS: Final = 2 * NS_PER_S
_KEY: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,127}")
_PREFIX: Final = re.compile(r"[a-z0-9_-]{0,128}")
_FORMS: Final = "folder:/path or s3://bucket/prefix?endpoint=http://host:port"


class BlobMissing(Exception):
    """There is no such blob (any more)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlobFacts:
    """What a listing tells of a blob."""

    key: str
    size_bytes: int
    written_at_unix_s: int
    """By the store's clock, not ours."""


class BlobWriter(Protocol):
    """One blob on its way; leaving its block without a commit aborts it."""

    async def write(self, content: bytes) -> None:
        """Append these bytes. Raises: Unavailable; the writer is then of no further use."""

    async def commit(self) -> int:
        """Make the blob durable and visible, in place of an older one; return its size in bytes.

        Raises: Unavailable where that is not known; write it again then.
        """

    async def abort(self) -> None:
        """Forget what was written; harmless after a commit, and twice."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *_: object) -> None: ...


class BlobStore(Protocol):
    """Blobs by key. A key is `[a-z0-9][a-z0-9_-]*`, at most 128 characters: ids of ours, never a
    name that a user chose. Other keys raise ContractViolation, an ailing store Unavailable.
    """

    async def create(self, key: str) -> BlobWriter:
        """Begin a blob."""

    def read(
        self, key: str, *, first_byte: int = 0, bytes_max: int | None = None
    ) -> AsyncIterator[bytes]:
        """Yield the blob's bytes from an offset on, in parts of at most READ_BYTES.

        None reads to the end; an offset at or beyond it yields nothing. Raises: BlobMissing.
        """

    async def size_bytes(self, key: str) -> int | None:
        """Return the blob's size; None if there is none."""

    async def delete(self, key: str) -> bool:
        """Remove the blob; return whether it was there, as far as the store tells."""

    async def list_blobs(self, prefix: str = "") -> list[BlobFacts]:
        """Return the blobs whose key begins so, sorted by key."""

    async def sweep_unfinished(self, *, older_than_s: int) -> int:
        """Remove what writers left behind that died this long ago; return how many."""


async def read_whole(store: BlobStore, key: str, *, bytes_max: int) -> bytes:
    """Return the first `bytes_max` bytes of a blob. Raises: BlobMissing, Unavailable."""
    return b"".join([part async for part in store.read(key, bytes_max=bytes_max)])


async def write_whole(store: BlobStore, key: str, content: bytes) -> None:
    """Write a blob in one go. Raises: Unavailable."""
    async with await store.create(key) as writer:
        await writer.write(content)
        await writer.commit()


def require_key(key: str) -> str:
    """Return the key. Raises: ContractViolation for what cannot be one."""
    if not _KEY.fullmatch(key):
        raise ContractViolation(f"not a blob's key: {key[:140]!r}")
    return key


def require_prefix(prefix: str) -> str:
    """Return the prefix. Raises: ContractViolation for what no key begins with."""
    if not _PREFIX.fullmatch(prefix):
        raise ContractViolation(f"not the beginning of a blob's key: {prefix[:140]!r}")
    return prefix


def open_blob_store(setting: str) -> BlobStore:
    """Return the store that a setting `blob_store` names; nothing is contacted yet.

    `folder:/path` (made if it is not there), or `s3://bucket/prefix`, with `?endpoint=` for what is
    not AWS and `&region=`; credentials come from where every AWS tool finds them.
    Raises: ConfigError.
    """
    scheme, _, rest = setting.partition(":")
    if scheme == "folder" and rest:
        # The two stores are imported where they are chosen: one needs botocore.
        from libs.runtime.blob_folder import FolderBlobStore

        return FolderBlobStore(Path(rest).expanduser())
    if scheme == "s3":
        return _open_s3(setting)
    raise ConfigError(f"blob_store: must be {_FORMS}; is {setting!r}")


def _open_s3(setting: str) -> BlobStore:
    parts = urlsplit(setting)
    options = dict(parse_qsl(parts.query))
    unknown = sorted(set(options) - {"endpoint", "region"})
    if unknown or not parts.netloc or parts.username is not None:
        raise ConfigError(f"blob_store: must be {_FORMS}")
    try:
        from libs.runtime.blob_s3 import S3BlobStore
    except ImportError as error:
        message = f"blob_store: s3 needs the extra `s3` ({error.name} is not installed)"
        raise ConfigError(message) from None
    return S3BlobStore(
        bucket=parts.netloc,
        prefix=parts.path.strip("/"),
        endpoint=options.get("endpoint"),
        region=options.get("region"),
    )
