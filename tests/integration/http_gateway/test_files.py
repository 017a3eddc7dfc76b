"""OpenAI's Files API through its own client, and what that client would never send."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import openai
import pytest

from libs.contracts.batches import FilePurpose
from libs.runtime.blob_store import open_blob_store
from services.http_gateway.batches.multipart import FORM_BYTES_MAX
from tests.integration.http_gateway.conftest import until
from tests.scripted_queue import QueueScript

LINES = b'{"custom_id": "1"}\n{"custom_id": "2"}\n'


def the_error(response: httpx.Response) -> dict:
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    return body["error"]


async def upload(stack, content: bytes = LINES, name: str = "lines.jsonl", **arguments):
    return await stack.openai.files.create(file=(name, content), purpose="batch", **arguments)


async def test_a_file_is_uploaded_listed_read_and_deleted(any_stack) -> None:
    async with any_stack() as stack:
        file = await upload(stack)
        assert (file.bytes, file.filename, file.purpose) == (len(LINES), "lines.jsonl", "batch")
        assert (file.object, file.status) == ("file", "processed")
        assert file.expires_at == file.created_at + 30 * 86_400
        assert await stack.openai.files.retrieve(file.id) == file
        assert (await stack.openai.files.content(file.id)).content == LINES
        assert file.id in [item.id async for item in stack.openai.files.list()]
        deleted = await stack.openai.files.delete(file.id)
        assert (deleted.id, deleted.deleted) == (file.id, True)
        with pytest.raises(openai.NotFoundError):
            await stack.openai.files.retrieve(file.id)
        with pytest.raises(openai.NotFoundError):
            await stack.openai.files.delete(file.id)


async def test_files_are_listed_page_by_page_in_both_orders(a_stack) -> None:
    async with a_stack() as stack:
        made = [(await upload(stack, name=f"{number}.jsonl")).id for number in range(5)]
        assert made == sorted(made)
        newest_first = [item.id async for item in stack.openai.files.list(limit=2)]
        assert newest_first == made[::-1]
        page = await stack.openai.files.list(limit=2, order="asc", after=made[1])
        assert [item.id for item in page.data] == made[2:4]
        assert page.has_more
        assert [item async for item in stack.openai.files.list(purpose="batch_output")] == []


async def test_a_large_file_passes_through_whole_while_others_are_served(a_stack) -> None:
    content = b'{"custom_id": "%08d", "body": "\r\n--x"}\n'.join([b""] * 200_000)
    async with a_stack() as stack:
        file = await upload(stack, content)
        read = await stack.openai.files.content(file.id)
        assert read.content == content


async def test_a_file_that_expires_says_when(a_stack) -> None:
    async with a_stack() as stack:
        file = await upload(stack, expires_after={"anchor": "created_at", "seconds": 3600})
        assert file.expires_at == file.created_at + 3600


@pytest.mark.parametrize(
    ("change", "parameter"),
    [
        ({"purpose": "assistants"}, "purpose"),
        ({"purpose": "batch_output"}, "purpose"),
        ({"expires_after[anchor]": "created_at"}, "expires_after.seconds"),
        (
            {"expires_after[anchor]": "created_at", "expires_after[seconds]": "60"},
            "expires_after.seconds",
        ),
    ],
)
async def test_a_wrong_field_of_the_form_is_named_and_no_file_stays(
    a_stack, tmp_path, change, parameter
) -> None:
    async with a_stack() as stack:
        fields = {"purpose": "batch", **change}
        response = await stack.http.post("/v1/files", data=fields, files={"file": b"x"})
        assert response.status_code == 400, response.text
        assert the_error(response)["param"] == parameter
        assert await open_blob_store(f"folder:{tmp_path / 'blobs'}").list_blobs() == []


FORM = {"content-type": "multipart/form-data; boundary=edge"}
FILE_PART = b'--edge\r\ncontent-disposition: form-data; name="file"\r\n\r\n'
PURPOSE_PART = b'--edge\r\ncontent-disposition: form-data; name="purpose"\r\n\r\n'


def a_head(*, content_length: int) -> bytes:
    head = f"POST /v1/files HTTP/1.1\r\nhost: h\r\ncontent-length: {content_length}\r\n"
    return f"{head}content-type: {FORM['content-type']}\r\n\r\n".encode()


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({"content-type": "application/json"}, b"{}"),
        ({"content-type": "multipart/form-data"}, b"--edge--"),
        ({"content-type": "multipart/form-data; boundary=" + "x" * 500}, b"--"),
        (FORM, b""),
        (FORM, b"\x00\xff" * 100),
        (FORM, b'--edge\r\ncontent-disposition: form-data; name="file"\r\n\r\nbroken off'),
        (
            FORM,
            b'--edge\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--edge--',
        ),
    ],
)
async def test_a_body_that_is_no_such_form_is_one_clear_400(a_stack, headers, body) -> None:
    async with a_stack() as stack:
        response = await stack.http.post("/v1/files", content=body, headers=headers)
        assert response.status_code == 400, response.text
        the_error(response)
        assert (await upload(stack)).bytes == len(LINES)


async def test_a_body_that_says_it_is_too_large_is_refused_before_it_is_read(a_stack) -> None:
    async with a_stack(upload_bytes_max=1000) as stack:
        reader, writer = await asyncio.open_connection(*stack.address)
        writer.write(a_head(content_length=1001 + FORM_BYTES_MAX))
        assert b" 413 " in await reader.readline()
        writer.close()


@pytest.mark.parametrize(("size_bytes", "status"), [(999, 200), (1000, 200), (1001, 413)])
async def test_a_file_is_taken_up_to_its_bound(a_stack, tmp_path, size_bytes, status) -> None:
    async with a_stack(upload_bytes_max=1000) as stack:
        response = await stack.http.post(
            "/v1/files", data={"purpose": "batch"}, files={"file": b"x" * size_bytes}
        )
        assert response.status_code == status
        if status == 413:
            assert the_error(response)["code"] == "too_large"
            assert list((tmp_path / "blobs" / ".partial").iterdir()) == []


class SlowUpload:
    """A body whose file stops to arrive until told to go on."""

    def __init__(self, folder: Path) -> None:
        self.go_on = asyncio.Event()
        self._partial = folder / "blobs" / ".partial"

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield FILE_PART + b"some"
        await self.go_on.wait()
        yield b"\r\n" + PURPOSE_PART + b"batch\r\n--edge--\r\n"

    @property
    def has_begun(self) -> bool:
        return len(list(self._partial.iterdir())) > 0


async def test_an_upload_that_does_not_go_on_is_answered_408_and_leaves_nothing(
    a_stack, tmp_path
) -> None:
    async with a_stack(upload_wait_s=0.2) as stack:
        reader, writer = await asyncio.open_connection(*stack.address)
        writer.write(a_head(content_length=1000) + FILE_PART + b"some")
        assert b" 408 " in await reader.readline()
        assert list((tmp_path / "blobs" / ".partial").iterdir()) == []
        writer.close()


async def test_a_client_that_hangs_up_leaves_nothing_behind(a_stack, tmp_path) -> None:
    async with a_stack() as stack:
        slow = SlowUpload(tmp_path)
        sending = asyncio.create_task(stack.http.post("/v1/files", content=slow, headers=FORM))
        await until(lambda: slow.has_begun)
        sending.cancel()
        await until(lambda: not slow.has_begun)


async def test_too_many_uploads_at_once_are_told_to_come_back(a_stack, tmp_path) -> None:
    async with a_stack(uploads_open_max=1) as stack:
        slow = SlowUpload(tmp_path)
        first = asyncio.create_task(stack.http.post("/v1/files", content=slow, headers=FORM))
        await until(lambda: slow.has_begun)
        second = await stack.http.post("/v1/files", files={"file": LINES})
        assert second.status_code == 429
        assert second.headers["retry-after"]
        slow.go_on.set()
        assert (await first).status_code == 200
        assert (await upload(stack)).bytes == len(LINES)


@pytest.mark.parametrize(
    ("sent", "shown"),
    [
        ("../../etc/passwd", "passwd"),
        ("C:\\\\docs\\\\lines.jsonl", "lines.jsonl"),
        ("/", "upload"),
        ("a" * 300, "a" * 255),
        ("Gezeiten-\u00e4.jsonl", "Gezeiten-\u00e4.jsonl"),
    ],
)
async def test_a_name_is_shown_and_never_a_path(a_stack, tmp_path, sent, shown) -> None:
    async with a_stack() as stack:
        file = await upload(stack, name=sent)
        assert file.filename == shown
        names = sorted(path.name for path in (tmp_path / "blobs").iterdir() if path.is_file())
        assert names == [file.id]


async def test_a_tenant_sees_its_own_files_only(a_stack) -> None:
    async with a_stack() as stack:
        theirs = stack.openai.with_options(default_headers={"x-tenant": "team-a"})
        file = await theirs.files.create(file=("a", LINES), purpose="batch")
        assert (await theirs.files.retrieve(file.id)).id == file.id
        with pytest.raises(openai.NotFoundError):
            await stack.openai.files.retrieve(file.id)
        with pytest.raises(openai.NotFoundError):
            await stack.openai.files.content(file.id)
        with pytest.raises(openai.NotFoundError):
            await stack.openai.files.delete(file.id)
        assert [item async for item in stack.openai.files.list()] == []
        assert [item.id async for item in theirs.files.list()] == [file.id]


@pytest.mark.parametrize("tenant", ["a b", "ä", "x" * 65, "a.b"])
async def test_a_tenant_is_a_plain_name(a_stack, tenant) -> None:
    async with a_stack() as stack:
        headers = {"x-tenant": tenant.encode()}
        response = await stack.http.get("/v1/files", headers=headers)
        assert response.status_code == 400
        assert the_error(response)["param"] == "x-tenant"


@pytest.mark.parametrize("file_id", ["file-0123456789", "nonsense", "file-%2e%2e", "a.b.*", "ä"])
async def test_an_id_that_names_nothing_is_a_404(a_stack, file_id) -> None:
    async with a_stack() as stack:
        for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/content")):
            response = await stack.http.request(method, f"/v1/files/{file_id}{path}")
            assert response.status_code == 404
            assert the_error(response)["code"] == "file_not_found"


async def test_a_file_that_a_batch_reads_is_not_deleted_until_the_batch_ends(any_stack) -> None:
    async with any_stack(queue=QueueScript()) as stack:
        file = await upload(stack)
        batch = await stack.openai.batches.create(
            input_file_id=file.id, endpoint="/v1/completions", completion_window="24h"
        )
        response = await stack.http.delete(f"/v1/files/{file.id}")
        assert response.status_code == 409
        assert response.headers["x-should-retry"] == "false"
        assert batch.id in the_error(response)["message"]
        assert (await stack.openai.files.content(file.id)).content == LINES
        await stack.openai.batches.cancel(batch.id)
        assert (await stack.openai.files.delete(file.id)).deleted


async def test_bytes_that_are_lost_are_an_error_and_not_an_empty_file(a_stack, tmp_path) -> None:
    async with a_stack() as stack:
        file = await upload(stack)
        (tmp_path / "blobs" / file.id).unlink()
        response = await stack.http.get(f"/v1/files/{file.id}/content")
        assert response.status_code == 500
        assert the_error(response)["code"] == "file_lost"


async def test_a_gateway_without_a_blob_store_says_so(a_stack) -> None:
    async with a_stack(blob_store=None) as stack:
        response = await stack.http.post(
            "/v1/files", data={"purpose": FilePurpose.BATCH}, files={"file": b"x"}
        )
        assert response.status_code == 503
        assert the_error(response)["code"] == "no_blob_store"
        assert (await stack.http.get("/v1/files")).json()["data"] == []


async def test_a_file_that_has_expired_is_not_there(a_stack) -> None:
    async with a_stack(upload_lifetime_s=1) as stack:
        file = await upload(stack)
        async with asyncio.timeout(10):
            while (await stack.http.get(f"/v1/files/{file.id}")).status_code == 200:
                await asyncio.sleep(0.05)
        assert (await stack.http.get(f"/v1/files/{file.id}/content")).status_code == 404
        assert [item async for item in stack.openai.files.list()] == []
