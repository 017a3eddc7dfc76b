"""The files of a tenant: their bytes in the blob store, what is known of them in a bucket."""

from collections.abc import AsyncIterator

from libs.client.batches import BatchClient
from libs.client.records import Page, PageRequest
from libs.contracts.batches import FileRecord
from libs.kernel.units import NS_PER_S
from libs.runtime.blob_store import BlobStore, BlobWriter
from libs.runtime.clock import Clock
from services.http_gateway.batches.errors import conflict, no_blob_store


class FileShelf:
    """What is expired or another tenant's is not there. Every method may raise Unavailable."""

    def __init__(self, batches: BatchClient, blobs: BlobStore | None, clock: Clock) -> None:
        """Without a blob store, what needs one raises ApiError."""
        self._batches = batches
        self._store = blobs
        self._clock = clock

    async def find(self, file_id: str, *, tenant: str) -> FileRecord | None:
        """Return the file; None where the tenant has none of this id."""
        record = await self._batches.files.get(file_id)
        return record if record is not None and self._is_seen(record, tenant=tenant) else None

    async def page(
        self, page: PageRequest, *, tenant: str, purpose: str | None
    ) -> Page[FileRecord]:
        """Return a page of the tenant's files, of one purpose if one is given."""
        return await self._batches.files.page(
            page,
            is_wanted=lambda record: (
                self._is_seen(record, tenant=tenant) and purpose in (None, record.purpose.value)
            ),
        )

    async def writer(self, file_id: str) -> BlobWriter:
        """Begin the bytes of a new file. Raises: ApiError without a blob store."""
        return await self._blobs.create(file_id)

    async def add(self, record: FileRecord) -> None:
        """Make a file known whose bytes are written. Raises: StreamFull."""
        await self._batches.files.create(record.file_id, record)

    async def remove(self, record: FileRecord) -> None:
        """Delete the file. Raises: ApiError while a batch reads it.

        A batch that is submitted at this very moment fails: it finds no input file.
        """
        blobs = self._blobs
        batch = await self._batches.open_batch_of(record.file_id)
        if batch is not None:
            raise conflict(f"the file is being read by {batch.batch_id}; cancel that or wait")
        # The record first: bytes without a record are nobody's, and swept if this ends here.
        await self._batches.files.delete(record.file_id)
        await blobs.delete(record.file_id)

    async def has_bytes(self, record: FileRecord) -> bool:
        """Tell whether the bytes are there and whole."""
        return await self._blobs.size_bytes(record.file_id) == record.size_bytes

    def content(self, record: FileRecord) -> AsyncIterator[bytes]:
        """Yield the bytes."""
        return self._blobs.read(record.file_id)

    @property
    def _blobs(self) -> BlobStore:
        if self._store is None:
            raise no_blob_store()
        return self._store

    def _is_seen(self, record: FileRecord, *, tenant: str) -> bool:
        if record.tenant != tenant:
            return False
        expires_at = record.expires_at_unix_s
        return expires_at is None or expires_at > self._clock.now_unix_ns() // NS_PER_S
