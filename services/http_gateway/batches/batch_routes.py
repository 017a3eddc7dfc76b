"""The routes of OpenAI's Batch API; the offline queue does the work."""

from typing import Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from libs.client.batch_ids import new_batch_id
from libs.client.batches import BatchClient
from libs.contracts.batches import (
    BatchQuestion,
    BatchRecord,
    BatchStatus,
    CancelBatch,
    FilePurpose,
    PauseBatch,
    ResumeBatch,
    SubmitBatch,
)
from libs.openai_api.errors import invalid
from libs.runtime.clock import Clock
from services.http_gateway.batches.claims import BatchClaims, is_repeat
from services.http_gateway.batches.errors import not_found
from services.http_gateway.batches.files import FileShelf
from services.http_gateway.batches.objects import batch_object, list_object
from services.http_gateway.batches.schemas import (
    CreateBatch,
    ListBatches,
    parse_batch,
    parse_fields,
)
from services.http_gateway.config import GatewayConfig
from services.http_gateway.request_bodies import whole_body
from services.http_gateway.tenants import tenant_of

_CANCELLED: Final = (BatchStatus.CANCELLING, BatchStatus.CANCELLED)


class BatchRoutes:
    """The endpoints under /v1/batches. A caller sees the batches of its own tenant."""

    def __init__(
        self,
        *,
        batches: BatchClient,
        claims: BatchClaims,
        files: FileShelf,
        config: GatewayConfig,
        clock: Clock,
    ) -> None:
        self._batches = batches
        self._claims = claims
        self._files = files
        self._config = config
        self._clock = clock

    async def create(self, request: Request) -> Response:
        """Answer POST /v1/batches."""
        tenant = tenant_of(request)
        config = self._config
        asked = parse_batch(
            await whole_body(request, bytes_max=config.body_bytes_max, wait_s=config.body_wait_s)
        )
        await self._require_input(asked.input_file_id, tenant=tenant)
        question = await self._claims.first(self._question(asked, tenant), request.headers)
        return await self._done(question)

    async def list(self, request: Request) -> Response:
        """Answer GET /v1/batches: the newest first."""
        tenant = tenant_of(request)
        asked = parse_fields(ListBatches, request.query_params)
        page = await self._batches.batches.page(
            asked.page(), is_wanted=lambda record: record.tenant == tenant
        )
        items = [batch_object(record) for record in page.records]
        return JSONResponse(list_object(items, has_more=page.has_more))

    async def get(self, request: Request) -> Response:
        """Answer GET /v1/batches/ID."""
        return JSONResponse(batch_object(await self._batch(request)))

    async def cancel(self, request: Request) -> Response:
        """Answer POST /v1/batches/ID/cancel: what is answered stays."""
        batch = await self._batch(request)
        if is_repeat(request.headers) and batch.status in _CANCELLED:
            return JSONResponse(batch_object(batch))  # By the attempt whose answer was lost.
        return await self._done(CancelBatch(batch_id=batch.batch_id))

    async def pause(self, request: Request) -> Response:
        """Answer POST /v1/batches/ID/pause, our own: no further line is taken up."""
        batch = await self._batch(request)
        return await self._done(PauseBatch(batch_id=batch.batch_id))

    async def resume(self, request: Request) -> Response:
        """Answer POST /v1/batches/ID/resume, our own."""
        batch = await self._batch(request)
        return await self._done(ResumeBatch(batch_id=batch.batch_id))

    def _question(self, asked: CreateBatch, tenant: str) -> SubmitBatch:
        expires_after = asked.output_expires_after
        return SubmitBatch(
            batch_id=new_batch_id(now_unix_ns=self._clock.now_unix_ns()),
            input_file_id=asked.input_file_id,
            endpoint=asked.endpoint,
            completion_window=asked.completion_window,
            metadata=asked.metadata or {},
            tenant=tenant,
            output_expires_after_s=None if expires_after is None else expires_after.seconds,
        )

    async def _require_input(self, file_id: str, *, tenant: str) -> None:
        """Raises: ApiError unless this is a file that a batch may read."""
        record = await self._files.find(file_id, tenant=tenant)
        if record is None:
            raise not_found("file", file_id, parameter="input_file_id")
        if record.purpose is not FilePurpose.BATCH:
            message = "the purpose of the input file must be 'batch'"
            raise invalid(message, parameter="input_file_id")

    async def _batch(self, request: Request) -> BatchRecord:
        batch_id: str = request.path_params["batch_id"]
        record = await self._batches.batches.get(batch_id)
        if record is None or record.tenant != tenant_of(request):
            raise not_found("batch", batch_id)
        return record

    async def _done(self, question: BatchQuestion) -> Response:
        return JSONResponse(batch_object(await self._batches.ask(question)))
