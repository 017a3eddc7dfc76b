"""Blobs as files of one folder, which may lie on a file system that several machines share.

    folder/.partial/KEY.NUMBER   being written; flushed to disk, then renamed to
    folder/KEY                   what readers see: whole, or not there

Bytes are on disk before the rename and the rename is before `commit` returns, so that a power cut
leaves the old blob or the new one.
"""

import asyncio
import os
import secrets
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import BinaryIO, Final, Self, TypeVar

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

PARTIAL_FOLDER: Final = ".partial"
WRITE_BYTES: Final = 1 * MIB
"""Bytes gathered before a thread is asked to write them."""

ResultT = TypeVar("ResultT")


class FolderBlobStore:
    """A BlobStore in a folder."""

    def __init__(self, folder: Path) -> None:
        """Make the folder if it is not there. Raises: ConfigError where it cannot be."""
        self._folder = folder
        self._partial = folder / PARTIAL_FOLDER
        try:
            self._partial.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"blob_store: {folder}: {error.strerror}") from None

    async def create(self, key: str) -> "FolderBlobWriter":
        """See BlobStore.create."""
        path = self._partial / f"{require_key(key)}.{secrets.token_hex(8)}"
        file = await _in_thread(lambda: _opened_new(path))
        return FolderBlobWriter(file, unfinished=path, target=self._folder / key)

    async def read(
        self, key: str, *, first_byte: int = 0, bytes_max: int | None = None
    ) -> AsyncIterator[bytes]:
        """See BlobStore.read."""
        file = await _in_thread(lambda: self._open_at(require_key(key), first_byte))
        read = 0
        try:
            while bytes_max is None or read < bytes_max:
                wanted = READ_BYTES if bytes_max is None else min(READ_BYTES, bytes_max - read)
                part = await _in_thread(partial(file.read, wanted))
                if not part:
                    return
                read += len(part)
                yield part
        finally:
            file.close()

    async def size_bytes(self, key: str) -> int | None:
        """See BlobStore.size_bytes."""
        path = self._folder / require_key(key)
        try:
            return await _in_thread(lambda: path.stat().st_size)
        except BlobMissing:
            return None

    async def delete(self, key: str) -> bool:
        """See BlobStore.delete."""
        path = self._folder / require_key(key)
        try:
            await _in_thread(path.unlink)
        except BlobMissing:
            return False
        return True

    async def list_blobs(self, prefix: str = "") -> list[BlobFacts]:
        """See BlobStore.list_blobs."""
        require_prefix(prefix)
        return await _in_thread(lambda: _listed(self._folder, prefix))

    async def sweep_unfinished(self, *, older_than_s: int) -> int:
        """See BlobStore.sweep_unfinished."""
        return await _in_thread(lambda: _sweep(self._partial, older_than_s))

    def _open_at(self, key: str, first_byte: int) -> BinaryIO:
        file = (self._folder / key).open("rb")
        file.seek(first_byte)
        return file


class FolderBlobWriter:
    """A BlobWriter into a file of its own."""

    def __init__(self, file: BinaryIO, *, unfinished: Path, target: Path) -> None:
        self._file = file
        self._unfinished = unfinished
        self._target = target
        self._gathered = bytearray()
        self._size_bytes = 0

    async def write(self, content: bytes) -> None:
        """See BlobWriter.write."""
        self._gathered += content
        self._size_bytes += len(content)
        if len(self._gathered) >= WRITE_BYTES:
            await self._flush()

    async def commit(self) -> int:
        """See BlobWriter.commit."""
        await self._flush()
        await _in_thread(self._publish)
        return self._size_bytes

    async def abort(self) -> None:
        """See BlobWriter.abort."""
        if not self._file.closed:
            await _in_thread(self._discard)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.abort()

    async def _flush(self) -> None:
        content, self._gathered = bytes(self._gathered), bytearray()
        await _in_thread(lambda: self._file.write(content))

    def _publish(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        os.replace(self._unfinished, self._target)
        self._file.close()
        folder = os.open(self._target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _discard(self) -> None:
        self._file.close()
        self._unfinished.unlink(missing_ok=True)


async def _in_thread(work: Callable[[], ResultT]) -> ResultT:
    """Return the result. Raises: BlobMissing, and Unavailable for whatever else the disk says."""
    try:
        return await asyncio.to_thread(work)
    except FileNotFoundError:
        raise BlobMissing("no such blob") from None
    except OSError as error:
        message = f"the blob store fails: {error.strerror}"
        raise Unavailable(message, retry_after_ns=RETRY_AFTER_NS) from error


def _opened_new(path: Path) -> BinaryIO:
    path.parent.mkdir(parents=True, exist_ok=True)  # somebody may have tidied it away
    return path.open("xb")


def _listed(folder: Path, prefix: str) -> list[BlobFacts]:
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.startswith(prefix) or not entry.is_file():
                continue
            try:
                facts = entry.stat()
            except FileNotFoundError:
                continue  # deleted since
            found.append(
                BlobFacts(
                    key=entry.name,
                    size_bytes=facts.st_size,
                    written_at_unix_s=int(facts.st_mtime),
                )
            )
    return sorted(found, key=lambda blob: blob.key)


def _sweep(folder: Path, older_than_s: int) -> int:
    before = time.time() - older_than_s
    swept = 0
    for path in folder.iterdir():
        try:
            if path.stat().st_mtime < before:
                path.unlink()
                swept += 1
        except FileNotFoundError:
            pass  # its writer, or another sweeper, was faster
    return swept
