"""Removes what nobody needs any more: files past their time, bytes without a record, old work."""

import asyncio
from collections.abc import Iterable, Mapping
from typing import Final

import structlog

from libs.contracts.batches import BatchRecord, FileRecord
from libs.kernel.errors import Unavailable
from libs.kernel.units import NS_PER_S, seconds
from libs.runtime.blob_store import BlobFacts, BlobStore
from libs.runtime.bus import StreamMissing
from services.offline_queue.store import OfflineStore

SWEEP_INTERVAL_NS: Final = 300 * NS_PER_S
ORPHAN_AGE_S: Final = 3_600
"""A file's bytes are written before its record: younger ones may still get theirs."""
UNFINISHED_AGE_S: Final = 86_400
BODY_PREFIX: Final = "line-"
FILE_PREFIX: Final = "file-"

_log = structlog.get_logger(__name__)


class Janitor:
    """Sweeps every few minutes; several at once do no harm."""

    def __init__(self, store: OfflineStore, blobs: BlobStore) -> None:
        self._store = store
        self._blobs = blobs

    async def run(self, stopping: asyncio.Event) -> None:
        """Sweep until told to stop."""
        while not stopping.is_set():
            try:
                async with asyncio.timeout(seconds(SWEEP_INTERVAL_NS)):
                    await stopping.wait()
            except TimeoutError:
                await self._sweep_if_possible()

    async def _sweep_if_possible(self) -> None:
        try:
            await self.sweep()
        except (Unavailable, StreamMissing) as error:
            _log.warning("sweep_put_off", error=str(error))

    async def sweep(self) -> None:
        """Look at everything once. Raises: Unavailable, StreamMissing."""
        # Blobs first: a file that is written meanwhile then has its record when these are read.
        blobs = await self._blobs.list_blobs(FILE_PREFIX) + await self._blobs.list_blobs(
            BODY_PREFIX
        )
        files, batches = await self._store.files.all(), await self._store.batches.all()
        now_unix_s = self._store.now_unix_s()
        removed = orphans(blobs, files=files, batches=batches, now_unix_s=now_unix_s)
        for file_id in past_their_time(files, batches=batches, now_unix_s=now_unix_s):
            await self._store.files.delete(file_id)
            removed.append(file_id)
        for key in removed:
            await self._blobs.delete(key)
        unfinished = await self._blobs.sweep_unfinished(older_than_s=UNFINISHED_AGE_S)
        await self._sweep_streams(batches)
        if removed or unfinished:
            _log.info("swept", blobs=len(removed), unfinished=unfinished)

    async def _sweep_streams(self, batches: Mapping[str, BatchRecord]) -> None:
        for batch_id in ended(await self._store.batches_with_work(), batches):
            await self._store.remove_work(batch_id)
        for batch_id in ended(await self._store.batches_with_results(), batches):
            await self._store.remove_results(batch_id)


def ended(batch_ids: Iterable[str], batches: Mapping[str, BatchRecord]) -> list[str]:
    """Return those that are final or unknown: a record is written before anything else."""
    return sorted(
        batch_id
        for batch_id in batch_ids
        if batch_id not in batches or batches[batch_id].status.is_final
    )


def orphans(
    blobs: Iterable[BlobFacts],
    *,
    files: Mapping[str, FileRecord],
    batches: Mapping[str, BatchRecord],
    now_unix_s: int,
) -> list[str]:
    """Return the keys of blobs that no record names and none will: their writers are long gone."""
    in_use = {record.input_file_id for record in batches.values() if not record.status.is_final}
    bodies = tuple(
        f"{BODY_PREFIX}{batch_id.removeprefix('batch_')}-"
        for batch_id, record in sorted(batches.items())
        if not record.status.is_final
    )
    return [
        blob.key
        for blob in blobs
        if now_unix_s - blob.written_at_unix_s > ORPHAN_AGE_S
        and blob.key not in files
        and blob.key not in in_use
        and not blob.key.startswith(bodies)
    ]


def past_their_time(
    files: Mapping[str, FileRecord], *, batches: Mapping[str, BatchRecord], now_unix_s: int
) -> list[str]:
    """Return the files that have expired; one that an open batch reads is kept till it ends."""
    in_use = {record.input_file_id for record in batches.values() if not record.status.is_final}
    return sorted(
        file_id
        for file_id, file in files.items()
        if file.expires_at_unix_s is not None
        and file.expires_at_unix_s <= now_unix_s
        and file_id not in in_use
    )
