"""Blobs as objects of an S3 bucket, or of what speaks its protocol.

Small blobs are one PutObject; large ones a multipart upload, whose parts nobody sees before it is
completed. Source: the Amazon S3 API reference (a part has at least 5 MiB, the last one excepted).
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Final, Self, TypeVar

from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError
from botocore.session import Session

from libs.kernel.errors import ConfigError, Unavailable
from libs.kernel.units import MIB
from libs.runtime.blob_store import (
    READ_BYTES,
    RETRY_AFTER_NS,
    BlobFacts,
    BlobMissing,
    require_key,
    require_prefix,
)

PART_BYTES: Final = 8 * MIB
"""10,000 parts, the most that an upload may have, are then 80 GB."""
CONNECT_TIMEOUT_S: Final = 5
READ_TIMEOUT_S: Final = 30
ATTEMPTS_MAX: Final = 4
REGION_DEFAULT: Final = "us-east-1"
_MISSING: Final = frozenset({"404", "NoSuchKey"})
_BEYOND_THE_END: Final = "InvalidRange"

ResultT = TypeVar("ResultT")


class S3BlobStore:
    """A BlobStore in a bucket, under a prefix."""

    def __init__(
        self, *, bucket: str, prefix: str, endpoint: str | None, region: str | None
    ) -> None:
        """Prepare a client; contacts nobody. Raises: ConfigError."""
        session = Session()
        config = Config(
            connect_timeout=CONNECT_TIMEOUT_S,
            read_timeout=READ_TIMEOUT_S,
            retries={"mode": "standard", "total_max_attempts": ATTEMPTS_MAX},
            # Others than AWS know buckets by path only, and not the newer checksums.
            s3={"addressing_style": "auto" if endpoint is None else "path"},
            request_checksum_calculation="when_supported" if endpoint is None else "when_required",
        )
        chosen = region or session.get_config_variable("region") or REGION_DEFAULT
        try:
            self._client: Any = session.create_client(
                "s3", region_name=chosen, endpoint_url=endpoint, config=config
            )
        except (BotoCoreError, ValueError) as error:
            raise ConfigError(f"blob_store: {error}") from None
        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""

    async def create(self, key: str) -> "S3BlobWriter":
        """See BlobStore.create."""
        return S3BlobWriter(self._client, self._place(key))

    async def read(
        self, key: str, *, first_byte: int = 0, bytes_max: int | None = None
    ) -> AsyncIterator[bytes]:
        """See BlobStore.read."""
        if bytes_max == 0:
            return
        last = "" if bytes_max is None else str(first_byte + bytes_max - 1)
        span = {"Range": f"bytes={first_byte}-{last}"} if first_byte or last else {}
        place = self._place(key)
        try:
            found = await _call(lambda: self._client.get_object(**place, **span))
        except _BeyondTheEnd:
            return
        body = found["Body"]
        try:
            while part := await _call(lambda: body.read(READ_BYTES)):
                yield part
        finally:
            body.close()

    async def size_bytes(self, key: str) -> int | None:
        """See BlobStore.size_bytes."""
        place = self._place(key)
        try:
            found = await _call(lambda: self._client.head_object(**place))
        except BlobMissing:
            return None
        return int(found["ContentLength"])

    async def delete(self, key: str) -> bool:
        """See BlobStore.delete: one more question, because S3 does not tell."""
        was_there = await self.size_bytes(key) is not None
        place = self._place(key)
        await _call(lambda: self._client.delete_object(**place))
        return was_there

    async def list_blobs(self, prefix: str = "") -> list[BlobFacts]:
        """See BlobStore.list_blobs."""
        whole = self._prefix + require_prefix(prefix)
        return await _call(lambda: sorted(self._listed(whole), key=lambda blob: blob.key))

    async def sweep_unfinished(self, *, older_than_s: int) -> int:
        """See BlobStore.sweep_unfinished."""
        return await _call(lambda: self._abort_uploads(time.time() - older_than_s))

    def _place(self, key: str) -> dict[str, str]:
        return {"Bucket": self._bucket, "Key": self._prefix + require_key(key)}

    def _listed(self, prefix: str) -> Iterator[BlobFacts]:
        pages = self._client.get_paginator("list_objects_v2")
        for page in pages.paginate(Bucket=self._bucket, Prefix=prefix, Delimiter="/"):
            for found in page.get("Contents", ()):
                yield BlobFacts(
                    key=found["Key"].removeprefix(self._prefix),
                    size_bytes=int(found["Size"]),
                    written_at_unix_s=int(found["LastModified"].timestamp()),
                )

    def _abort_uploads(self, before_unix_s: float) -> int:
        swept = 0
        pages = self._client.get_paginator("list_multipart_uploads")
        for page in pages.paginate(Bucket=self._bucket, Prefix=self._prefix):
            for upload in page.get("Uploads", ()):
                if upload["Initiated"].timestamp() < before_unix_s:
                    self._client.abort_multipart_upload(
                        Bucket=self._bucket, Key=upload["Key"], UploadId=upload["UploadId"]
                    )
                    swept += 1
        return swept


class S3BlobWriter:
    """A BlobWriter of one object."""

    def __init__(self, client: Any, place: dict[str, str]) -> None:
        self._client = client
        self._place = place
        self._gathered = bytearray()
        self._upload: dict[str, str] | None = None
        """The upload's place and id, once there is one."""
        self._parts: list[dict[str, Any]] = []
        self._size_bytes = 0

    async def write(self, content: bytes) -> None:
        """See BlobWriter.write."""
        self._gathered += content
        self._size_bytes += len(content)
        while len(self._gathered) >= PART_BYTES:
            part = bytes(self._gathered[:PART_BYTES])
            del self._gathered[:PART_BYTES]
            await self._send_part(part)

    async def commit(self) -> int:
        """See BlobWriter.commit."""
        rest, self._gathered = bytes(self._gathered), bytearray()
        if self._upload is None:
            await _call(lambda: self._client.put_object(**self._place, Body=rest))
            return self._size_bytes
        if rest:
            await self._send_part(rest)
        upload, parts = self._upload, {"Parts": self._parts}
        await _call(lambda: self._client.complete_multipart_upload(**upload, MultipartUpload=parts))
        self._upload = None
        return self._size_bytes

    async def abort(self) -> None:
        """See BlobWriter.abort: what cannot be aborted now is swept later."""
        upload, self._upload = self._upload, None
        if upload is None:
            return
        try:
            await _call(lambda: self._client.abort_multipart_upload(**upload))
        except (BlobMissing, Unavailable):
            return

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.abort()

    async def _send_part(self, content: bytes) -> None:
        if self._upload is None:
            begun = await _call(lambda: self._client.create_multipart_upload(**self._place))
            self._upload = {**self._place, "UploadId": begun["UploadId"]}
        upload, number = self._upload, len(self._parts) + 1
        sent = await _call(
            lambda: self._client.upload_part(**upload, PartNumber=number, Body=content)
        )
        self._parts.append({"PartNumber": number, "ETag": sent["ETag"]})


class _BeyondTheEnd(Exception):
    """The range begins where the object has ended."""


async def _call(work: Callable[[], ResultT]) -> ResultT:
    """Return the result. Raises: BlobMissing; Unavailable for whatever else goes wrong."""
    try:
        return await asyncio.to_thread(work)
    except ClientError as error:
        code = error.response.get("Error", {}).get("Code", "")
        if code in _MISSING:
            raise BlobMissing("no such blob") from None
        if code == _BEYOND_THE_END:
            raise _BeyondTheEnd from None
        message = f"the blob store refuses: {code}"
        raise Unavailable(message, retry_after_ns=RETRY_AFTER_NS) from error
    except (BotoCoreError, HTTPClientError, OSError) as error:
        message = f"the blob store fails: {type(error).__name__}"
        raise Unavailable(message, retry_after_ns=RETRY_AFTER_NS) from error
