"""The routes, and how every error becomes OpenAI's envelope."""

import asyncio
import uuid
from http import HTTPStatus
from typing import Final

import structlog
from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from libs.client.client import TideClient
from libs.contracts.online import SubmitRequest
from libs.contracts.subjects import alias_of
from libs.kernel.units import MIB, NS_PER_S
from libs.runtime.bus import CoreBus
from libs.runtime.clock import Clock
from libs.runtime.metrics import CONTENT_TYPE
from services.http_gateway import chat, completions
from services.http_gateway.answer_form import AnswerForm, AnswerHead
from services.http_gateway.answering import CLIENT_GONE_STATUS, Answering, Order
from services.http_gateway.config import GatewayConfig
from services.http_gateway.errors import (
    RETRY_AFTER_NS,
    SERVER_ERROR,
    ApiError,
    ErrorAnswer,
    model_not_found,
)
from services.http_gateway.fleet_view import FleetView, ServedModel
from services.http_gateway.measures import Measures
from services.http_gateway.schemas import (
    ChatRequest,
    CompletionRequest,
    GenerationRequest,
    StreamOptions,
    parse,
)

REQUEST_ID_HEADER: Final = "x-request-id"
UNMATCHED_ROUTE: Final = "unmatched"

_log = structlog.get_logger(__name__)


class Routes:
    """The endpoints over one client, one view of the fleet and one set of measures."""

    def __init__(
        self,
        *,
        bus: CoreBus,
        client: TideClient,
        view: FleetView,
        measures: Measures,
        config: GatewayConfig,
        clock: Clock,
    ) -> None:
        self._bus = bus
        self._view = view
        self._measures = measures
        self._config = config
        self._clock = clock
        self._expires_after_ms = max(1, round(config.request_timeout_s * 1000))
        self._answering = Answering(client, measures, request_timeout_s=config.request_timeout_s)

    async def chat_completions(self, request: Request) -> Response:
        """Answer POST /v1/chat/completions."""
        asked = parse(ChatRequest, await self._body(request))
        request_id = _request_id(request)
        self._require_model(asked.model)
        submission = chat.chat_submission(
            asked, request_id=request_id, expires_after_ms=self._expires_after_ms
        )
        form = chat.ChatForm(self._head(asked, chat.ANSWER_ID_PREFIX + request_id))
        return await self._answering.answer(
            _order(asked, submission, form, chat.PROMPT_PARAMETER), request
        )

    async def completions(self, request: Request) -> Response:
        """Answer POST /v1/completions."""
        asked = parse(CompletionRequest, await self._body(request))
        request_id = _request_id(request)
        self._require_model(asked.model)
        submission = completions.completion_submission(
            asked, request_id=request_id, expires_after_ms=self._expires_after_ms
        )
        head = self._head(asked, completions.ANSWER_ID_PREFIX + request_id)
        form = completions.CompletionForm(head)
        return await self._answering.answer(
            _order(asked, submission, form, completions.PROMPT_PARAMETER), request
        )

    async def models(self) -> Response:
        """Answer GET /v1/models: what living workers serve."""
        cards = [_card(model) for model in self._view.models()]
        return JSONResponse({"object": "list", "data": cards})

    async def model(self, request: Request) -> Response:
        """Answer GET /v1/models/NAME; a name may contain slashes."""
        name: str = request.path_params["name"]
        alias = alias_of(name)
        for model in self._view.models():
            if model.alias == alias:
                return JSONResponse({**_card(model), "id": name})
        raise ApiError(model_not_found(name))

    async def health(self) -> Response:
        """Answer GET /health: 200 once requests can be served, 503 before and while they cannot."""
        is_ready = self._bus.is_connected and self._view.has_router
        report = {
            "status": "ready" if is_ready else "not ready",
            "bus_connected": self._bus.is_connected,
            "router_heard": self._view.has_router,
            "models": [model.alias for model in self._view.models()],
        }
        status = HTTPStatus.OK if is_ready else HTTPStatus.SERVICE_UNAVAILABLE
        return JSONResponse(report, status_code=status)

    async def live(self) -> Response:
        """Answer GET /live: the process runs."""
        return JSONResponse({"status": "live"})

    async def metrics(self) -> Response:
        """Answer GET /metrics."""
        self._measures.is_bus_connected.set(1 if self._bus.is_connected else 0)
        return Response(self._measures.metrics.exposition(), media_type=CONTENT_TYPE)

    async def _body(self, request: Request) -> bytes:
        """Read the body, no further than the limit. Raises: ApiError, ClientDisconnect."""
        limit = self._config.body_bytes_max
        declared = request.headers.get("content-length", "")
        if declared.isdecimal() and int(declared) > limit:
            raise _body_too_large(limit)
        body = bytearray()
        try:
            async with asyncio.timeout(self._config.body_wait_s):
                async for part in request.stream():
                    body += part
                    if len(body) > limit:
                        raise _body_too_large(limit)
        except TimeoutError:
            message = "the body did not arrive in time"
            raise ApiError(
                ErrorAnswer(status=HTTPStatus.REQUEST_TIMEOUT, message=message)
            ) from None
        return bytes(body)

    def _require_model(self, name: str) -> None:
        if self._view.is_known(alias_of(name)):
            return
        if self._view.has_heard_workers:
            raise ApiError(model_not_found(name))
        raise ApiError(
            ErrorAnswer(
                status=HTTPStatus.SERVICE_UNAVAILABLE,
                message="no worker has reported yet",
                type=SERVER_ERROR,
                code="no_worker",
                retry_after_ns=RETRY_AFTER_NS,
            )
        )

    def _head(self, asked: GenerationRequest, answer_id: str) -> AnswerHead:
        return AnswerHead(
            answer_id=answer_id,
            created_at_unix_s=self._clock.now_unix_ns() // NS_PER_S,
            model=asked.model,
        )


def create_app(routes: Routes, measures: Measures) -> FastAPI:
    """Return the ASGI application."""
    app = FastAPI(title="TideServe", openapi_url=None, redirect_slashes=False)
    post, get = ["POST"], ["GET"]
    app.add_api_route("/v1/chat/completions", routes.chat_completions, methods=post)
    app.add_api_route("/v1/completions", routes.completions, methods=post)
    app.add_api_route("/v1/models", routes.models, methods=get)
    app.add_api_route("/v1/models/{name:path}", routes.model, methods=get)
    app.add_api_route("/health", routes.health, methods=get)
    app.add_api_route("/live", routes.live, methods=get)
    app.add_api_route("/metrics", routes.metrics, methods=get)
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(ClientDisconnect, _client_gone)
    app.add_exception_handler(Exception, _unexpected)
    app.add_middleware(RequestIds, measures=measures)
    return app


class RequestIds:
    """Gives each HTTP request its id, shown in `x-request-id`, and counts the responses.

    The id is ours alone: what a caller sends under that name is not used for anything, because
    the id becomes part of subjects.
    """

    def __init__(self, app: ASGIApp, *, measures: Measures) -> None:
        self._app = app
        self._measures = measures

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on; see the class."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                header = (REQUEST_ID_HEADER.encode(), request_id.encode())
                message["headers"] = [*message.get("headers", ()), header]
                route = getattr(scope.get("route"), "path", UNMATCHED_ROUTE)
                self._measures.answered(route=route, status=message["status"])
            await send(message)

        await self._app(scope, receive, send_with_id)


def _order(
    asked: ChatRequest | CompletionRequest,
    submission: SubmitRequest,
    form: AnswerForm,
    prompt_parameter: str,
) -> Order:
    return Order(
        model=asked.model,
        submission=submission,
        form=form,
        prompt_parameter=prompt_parameter,
        is_streaming=bool(asked.stream),
        stream_options=asked.stream_options or StreamOptions(),
    )


def _card(model: ServedModel) -> dict[str, object]:
    return {
        "id": model.alias,
        "object": "model",
        "created": model.first_heard_at_unix_ns // NS_PER_S,
        "owned_by": "tideserve",
        "max_model_len": model.context_tokens_max,
    }


def _request_id(request: Request) -> str:
    request_id: str = request.state.request_id
    return request_id


def _body_too_large(limit: int) -> ApiError:
    message = f"the body is larger than {limit / MIB:g} MiB"
    return ApiError(
        ErrorAnswer(status=HTTPStatus.REQUEST_ENTITY_TOO_LARGE, message=message, code="too_large")
    )


def _answer_with(answer: ErrorAnswer) -> Response:
    headers = answer.headers()
    if answer.status == HTTPStatus.REQUEST_TIMEOUT:
        headers["connection"] = "close"  # What comes next on it would be taken for a new request.
    return JSONResponse(answer.envelope(), status_code=answer.status, headers=headers)


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return _answer_with(error.answer)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    messages = {404: "there is no such path", 405: "this path has other methods"}
    message = messages.get(error.status_code, HTTPStatus(error.status_code).phrase)
    response = _answer_with(ErrorAnswer(status=error.status_code, message=message))
    response.headers.update(error.headers or {})
    return response


async def _client_gone(request: Request, error: Exception) -> Response:
    return Response(status_code=CLIENT_GONE_STATUS)


async def _unexpected(request: Request, error: Exception) -> Response:
    _log.error("request_crashed", request_id=_request_id(request), exc_info=error)
    answer = ErrorAnswer(
        status=HTTPStatus.INTERNAL_SERVER_ERROR,
        message=f"internal error; see the gateway's log for request {_request_id(request)}",
        type=SERVER_ERROR,
        code="internal_error",
    )
    return _answer_with(answer)
