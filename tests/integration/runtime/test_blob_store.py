"""What both blob stores promise: whole or not there, whoever writes, reads or dies meanwhile."""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from moto.server import ThreadedMotoServer

from libs.kernel.errors import ConfigError, ContractViolation, Unavailable
from libs.runtime.blob_folder import PARTIAL_FOLDER
from libs.runtime.blob_s3 import PART_BYTES, S3BlobStore
from libs.runtime.blob_store import (
    READ_BYTES,
    BlobMissing,
    BlobStore,
    open_blob_store,
    read_whole,
    write_whole,
)

BUCKET = "tide-test"
BIG = bytes(range(256)) * 4096


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    # botocore signs with whatever it finds; the server on loopback takes any.
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


def s3_setting(endpoint: str, prefix: str = "a/b") -> str:
    return f"s3://{BUCKET}/{prefix}?endpoint={endpoint}"


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path, credentials: None) -> BlobStore:
    if request.param == "folder":
        return open_blob_store(f"folder:{tmp_path}/blobs")
    endpoint = request.getfixturevalue("s3_endpoint")
    store = open_blob_store(s3_setting(endpoint, prefix=tmp_path.name.replace("_", "-")))
    assert isinstance(store, S3BlobStore)
    store._client.create_bucket(Bucket=BUCKET)
    return store


def test_what_was_committed_is_read_back_whole_and_in_ranges(store: BlobStore) -> None:
    async def scenario() -> None:
        await write_whole(store, "file-1", BIG)
        assert await store.size_bytes("file-1") == len(BIG)
        parts = [part async for part in store.read("file-1")]
        assert b"".join(parts) == BIG
        assert max(map(len, parts)) <= READ_BYTES
        assert await read_whole(store, "file-1", bytes_max=5) == BIG[:5]
        middle = [part async for part in store.read("file-1", first_byte=300_001, bytes_max=7)]
        assert b"".join(middle) == BIG[300_001:300_008]
        tail = [part async for part in store.read("file-1", first_byte=len(BIG) - 3)]
        assert b"".join(tail) == BIG[-3:]
        assert [part async for part in store.read("file-1", first_byte=len(BIG))] == []

    asyncio.run(scenario())


def test_an_empty_blob_is_a_blob(store: BlobStore) -> None:
    async def scenario() -> None:
        await write_whole(store, "file-0", b"")
        assert await store.size_bytes("file-0") == 0
        assert await read_whole(store, "file-0", bytes_max=10) == b""

    asyncio.run(scenario())


def test_a_blob_of_many_parts_is_whole(store: BlobStore) -> None:
    content = os.urandom(PART_BYTES * 2 + 12_345)

    async def scenario() -> None:
        async with await store.create("file-2") as writer:
            for first in range(0, len(content), 999_983):
                await writer.write(content[first : first + 999_983])
            assert await store.size_bytes("file-2") is None, "seen before it was complete"
            assert await writer.commit() == len(content)
        assert await read_whole(store, "file-2", bytes_max=len(content) + 1) == content
        assert await store.sweep_unfinished(older_than_s=-60) == 0, "a commit leaves nothing behind"

    asyncio.run(scenario())


def test_a_writer_that_does_not_commit_leaves_what_was_there(store: BlobStore) -> None:
    async def scenario() -> None:
        await write_whole(store, "file-3", b"old")
        async with await store.create("file-3") as writer:
            await writer.write(b"new" * PART_BYTES)
        assert await read_whole(store, "file-3", bytes_max=9) == b"old"
        assert await store.sweep_unfinished(older_than_s=-60) == 0

    asyncio.run(scenario())


def test_of_two_writers_of_one_key_the_last_commit_counts(store: BlobStore) -> None:
    async def scenario() -> None:
        first, second = await store.create("file-4"), await store.create("file-4")
        await first.write(b"first")
        await second.write(b"second")
        await second.commit()
        await first.commit()
        assert await read_whole(store, "file-4", bytes_max=99) == b"first"

    asyncio.run(scenario())


def test_what_a_dead_writer_left_is_swept_once_it_is_old(store: BlobStore) -> None:
    async def scenario() -> None:
        abandoned = await store.create("file-5")
        await abandoned.write(b"x" * (PART_BYTES + 1))
        if not isinstance(store, S3BlobStore):  # moto dates every upload in the year 2010
            assert await store.sweep_unfinished(older_than_s=3600) == 0, "it may still be written"
        assert await store.sweep_unfinished(older_than_s=-60) == 1
        assert await store.size_bytes("file-5") is None
        await abandoned.abort()

    asyncio.run(scenario())


def test_blobs_are_listed_by_prefix_and_deleted(store: BlobStore) -> None:
    async def scenario() -> None:
        for key in ("line-b", "file-a", "line-a"):
            await write_whole(store, key, key.encode())
        listed = await store.list_blobs("line-")
        assert [(blob.key, blob.size_bytes) for blob in listed] == [("line-a", 6), ("line-b", 6)]
        assert abs(listed[0].written_at_unix_s - time.time()) < 60
        assert await store.delete("line-a")
        assert not await store.delete("line-a")
        assert [blob.key for blob in await store.list_blobs()] == ["file-a", "line-b"]

    asyncio.run(scenario())


def test_a_missing_blob_is_told_as_such(store: BlobStore) -> None:
    async def scenario() -> None:
        assert await store.size_bytes("file-9") is None
        with pytest.raises(BlobMissing):
            await read_whole(store, "file-9", bytes_max=1)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "key", ["", "../up", "a/b", ".partial", "Upper", "nul\0", "name.jsonl", "a" * 129, "-x"]
)
def test_a_name_that_a_user_chose_is_no_key(store: BlobStore, key: str) -> None:
    attempts: list[Callable[[], Awaitable[object]]] = [
        lambda: store.create(key),
        lambda: store.size_bytes(key),
        lambda: store.delete(key),
        lambda: read_whole(store, key, bytes_max=1),
    ]
    for attempt in attempts:
        with pytest.raises(ContractViolation):
            asyncio.run(_awaited(attempt))


async def _awaited(attempt: Callable[[], Awaitable[object]]) -> object:
    return await attempt()


def test_a_store_that_is_away_is_unavailable() -> None:
    store = open_blob_store("s3://bucket/x?endpoint=http://127.0.0.1:9&region=nowhere-1")
    with pytest.raises(Unavailable):
        asyncio.run(store.size_bytes("file-1"))


def test_a_bucket_that_does_not_exist_is_unavailable_and_not_an_empty_one(s3_endpoint: str) -> None:
    store = open_blob_store(f"s3://no-such-bucket/x?endpoint={s3_endpoint}")
    with pytest.raises(Unavailable):
        asyncio.run(store.list_blobs())


def test_a_folder_keeps_unfinished_files_apart(tmp_path: Path) -> None:
    store = open_blob_store(f"folder:{tmp_path}/made/for/it")

    async def scenario() -> None:
        writer = await store.create("file-1")
        await writer.write(b"x")
        assert await store.list_blobs() == []
        assert len(list((tmp_path / "made/for/it" / PARTIAL_FOLDER).iterdir())) == 1
        await writer.abort()
        await writer.abort()

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "setting", ["", "folder:", "s3:", "s3://", "s3://b?colour=red", "http://x/y", "s3://u:p@b/x"]
)
def test_a_setting_that_names_no_store_is_an_error_of_one_line(setting: str) -> None:
    with pytest.raises(ConfigError, match=r"^blob_store: "):
        open_blob_store(setting)


def test_a_folder_that_cannot_be_made_is_an_error_of_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigError, match=r"^blob_store: "):
        open_blob_store(f"folder:{tmp_path}/file/blobs")
