"""The routes of OpenAI's Files API, for the files of batches."""

from http import HTTPStatus

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from libs.client.batch_ids import new_file_id
from libs.contracts.batches import FilePurpose, FileRecord
from libs.kernel.units import NS_PER_S
from libs.openai_api.errors import RETRY_AFTER_NS, SERVER_ERROR, ApiError, ErrorAnswer
from libs.runtime.clock import Clock
from services.http_gateway.batches.errors import not_found
from services.http_gateway.batches.files import FileShelf
from services.http_gateway.batches.objects import file_object, list_object
from services.http_gateway.batches.schemas import ListFiles, parse_fields
from services.http_gateway.batches.uploads import Upload
from services.http_gateway.config import GatewayConfig
from services.http_gateway.measures import Measures
from services.http_gateway.tenants import tenant_of


class FileRoutes:
    """The endpoints under /v1/files. A caller sees the files of its own tenant."""

    def __init__(
        self, files: FileShelf, *, measures: Measures, config: GatewayConfig, clock: Clock
    ) -> None:
        self._files = files
        self._measures = measures
        self._config = config
        self._clock = clock
        self._uploads_open = 0

    async def create(self, request: Request) -> Response:
        """Answer POST /v1/files: the file goes to the blob store as it arrives."""
        tenant = tenant_of(request)
        if self._uploads_open >= self._config.uploads_open_max:
            raise _too_many_uploads()
        self._count_uploads(1)
        try:
            record = await self._received(request, tenant)
        finally:
            self._count_uploads(-1)
        await self._files.add(record)
        self._measures.uploaded_bytes.inc(record.size_bytes)
        return JSONResponse(file_object(record))

    async def list(self, request: Request) -> Response:
        """Answer GET /v1/files."""
        tenant = tenant_of(request)
        asked = parse_fields(ListFiles, request.query_params)
        page = await self._files.page(asked.page(), tenant=tenant, purpose=asked.purpose)
        items = [file_object(record) for record in page.records]
        return JSONResponse(list_object(items, has_more=page.has_more))

    async def get(self, request: Request) -> Response:
        """Answer GET /v1/files/ID."""
        return JSONResponse(file_object(await self._file(request)))

    async def delete(self, request: Request) -> Response:
        """Answer DELETE /v1/files/ID; refused while a batch reads the file."""
        record = await self._file(request)
        await self._files.remove(record)
        return JSONResponse({"id": record.file_id, "object": "file", "deleted": True})

    async def content(self, request: Request) -> Response:
        """Answer GET /v1/files/ID/content: the bytes as they were written."""
        record = await self._file(request)
        if not await self._files.has_bytes(record):
            raise ApiError(
                ErrorAnswer(
                    status=HTTPStatus.INTERNAL_SERVER_ERROR,
                    message="the bytes of this file are lost",
                    type=SERVER_ERROR,
                    code="file_lost",
                )
            )
        headers = {
            "content-length": str(record.size_bytes),
            # What a caller uploaded is shown by no browser as a page of ours.
            "content-disposition": "attachment",
            "x-content-type-options": "nosniff",
        }
        return StreamingResponse(
            self._files.content(record), headers=headers, media_type="application/octet-stream"
        )

    def _count_uploads(self, change: int) -> None:
        self._uploads_open += change
        self._measures.uploads_open.set(self._uploads_open)

    async def _received(self, request: Request, tenant: str) -> FileRecord:
        now_unix_ns = self._clock.now_unix_ns()
        file_id = new_file_id(now_unix_ns=now_unix_ns)
        config = self._config
        async with await self._files.writer(file_id) as writer:
            upload = Upload(writer, bytes_max=config.upload_bytes_max)
            await upload.receive(request, wait_s=config.upload_wait_s)
            expires_after = upload.form().expires_after
            file_name = upload.file_name()
            size_bytes = await writer.commit()
        created_at_unix_s = now_unix_ns // NS_PER_S
        lifetime_s = expires_after.seconds if expires_after else config.upload_lifetime_s
        return FileRecord(
            file_id=file_id,
            purpose=FilePurpose.BATCH,
            file_name=file_name,
            size_bytes=size_bytes,
            created_at_unix_s=created_at_unix_s,
            expires_at_unix_s=created_at_unix_s + lifetime_s,
            tenant=tenant,
        )

    async def _file(self, request: Request) -> FileRecord:
        file_id: str = request.path_params["file_id"]
        record = await self._files.find(file_id, tenant=tenant_of(request))
        if record is None:
            raise not_found("file", file_id)
        return record


def _too_many_uploads() -> ApiError:
    return ApiError(
        ErrorAnswer(
            status=HTTPStatus.TOO_MANY_REQUESTS,
            message="too many files are being uploaded",
            type="rate_limit_error",
            code="too_many_uploads",
            retry_after_ns=RETRY_AFTER_NS,
        )
    )
