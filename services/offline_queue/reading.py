"""Reads the lines of a batch's file out of the blob store, parsed in a thread: bodies are long."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

from libs.contracts.batches import BatchPart, LineError
from libs.runtime.blob_store import BlobStore
from services.offline_queue.file_judge import FileJudge, Verdict
from services.offline_queue.line_file import (
    BatchLine,
    LineSplitter,
    PartGrouping,
    RawLine,
    read_line,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FilePart:
    """The lines of one part that ask for something, as they stand in the file."""

    part: int
    lines: tuple[RawLine, ...]


async def judge_file(blobs: BlobStore, file_id: str, *, endpoint: str) -> Verdict:
    """Return what is wrong with a file, or its parts. Raises: BlobMissing, Unavailable."""
    judge = FileJudge(endpoint)
    async for content in blobs.read(file_id):
        if not await asyncio.to_thread(judge.feed, content):
            break
    return await asyncio.to_thread(judge.finish)


async def read_part(
    blobs: BlobStore, file_id: str, part: BatchPart, *, endpoint: str
) -> dict[int, BatchLine]:
    """Return the lines of a part by number. Raises: BlobMissing, Unavailable."""
    content = bytearray()
    async for piece in blobs.read(file_id, first_byte=part.first_byte, bytes_max=part.size_bytes):
        content += piece
    return await asyncio.to_thread(_parsed, bytes(content), part, endpoint)


async def read_parts(blobs: BlobStore, file_id: str) -> AsyncIterator[FilePart]:
    """Yield the file part by part, as validation cut it. Raises: BlobMissing, Unavailable."""
    splitter, grouping = LineSplitter(), PartGrouping()
    held: list[RawLine] = []
    async for content in blobs.read(file_id):
        for line in splitter.feed(content):
            held.append(line)
            part = grouping.add(line)
            if part is not None:
                yield _part_of(part.part, held)
                held = []
    for line in splitter.finish():
        held.append(line)
        part = grouping.add(line)
        if part is not None:
            yield _part_of(part.part, held)
            held = []
    last = grouping.finish()
    if last is not None:
        yield _part_of(last.part, held)


def custom_id_of(raw: RawLine, *, endpoint: str) -> str:
    """Return what the user calls this line; empty where it cannot be read."""
    line = read_line(raw, endpoint=endpoint)
    return "" if isinstance(line, LineError) else line.custom_id


def _part_of(part: int, lines: list[RawLine]) -> FilePart:
    return FilePart(part=part, lines=tuple(line for line in lines if not line.is_blank))


def _parsed(content: bytes, part: BatchPart, endpoint: str) -> dict[int, BatchLine]:
    splitter = LineSplitter(first_line=part.first_line, first_byte=part.first_byte)
    found = {}
    for raw in (*splitter.feed(content), *splitter.finish()):
        line = None if raw.is_blank else read_line(raw, endpoint=endpoint)
        if isinstance(line, BatchLine):
            found[line.number] = line
    return found
