"""The routes: requests in, answers of the fleet out."""

from http import HTTPStatus
from typing import Final

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from libs.client.client import TideClient
from libs.contracts.subjects import alias_of
from libs.kernel.units import NS_PER_S
from libs.openai_api.errors import (
    RETRY_AFTER_NS,
    SERVER_ERROR,
    ApiError,
    ErrorAnswer,
    invalid,
    model_not_found,
)
from libs.openai_api.orders import Orders
from libs.openai_api.schemas import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    StreamOptions,
    TokenizeRequest,
    parse,
)
from libs.openai_api.text_questions import TextQuestions
from libs.runtime.bus import CoreBus
from libs.runtime.clock import Clock
from libs.runtime.metrics import CONTENT_TYPE
from libs.runtime.tracing import Tracing
from services.http_gateway.answering import Answering
from services.http_gateway.api_keys import ApiKeys, Authentication
from services.http_gateway.batches.batch_routes import BatchRoutes
from services.http_gateway.batches.file_routes import FileRoutes
from services.http_gateway.config import GatewayConfig
from services.http_gateway.dashboard.routes import DashboardRoutes
from services.http_gateway.error_responses import answer_errors
from services.http_gateway.fleet_view import FleetView, ServedModel
from services.http_gateway.measures import Measures
from services.http_gateway.openapi import openapi_document
from services.http_gateway.request_bodies import whole_body
from services.http_gateway.request_ids import RequestIds, request_id_of
from services.http_gateway.tenants import tenant_of

API_VERSION: Final = "1"


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
        tracing: Tracing | None = None,
    ) -> None:
        self._bus = bus
        self._view = view
        self._measures = measures
        self._config = config
        self._clock = clock
        self._text = TextQuestions(client)
        self._orders = Orders(
            text=self._text, expires_after_ms=max(1, round(config.request_timeout_s * 1000))
        )
        self._answering = Answering(
            client, measures, request_timeout_s=config.request_timeout_s, tracing=tracing
        )

    async def chat_completions(self, request: Request) -> Response:
        """Answer POST /v1/chat/completions."""
        return await self._answer(parse(ChatRequest, await self._body(request)), request)

    async def completions(self, request: Request) -> Response:
        """Answer POST /v1/completions."""
        return await self._answer(parse(CompletionRequest, await self._body(request)), request)

    async def tokenize(self, request: Request) -> Response:
        """Answer POST /tokenize."""
        asked = parse(TokenizeRequest, await self._body(request))
        model = self._model_or_the_only_one(asked.model)
        served = {card.alias: card.context_tokens_max for card in self._view.models()}
        content = await self._text.tokenize(
            asked, model=model, context_tokens_max=served.get(alias_of(model))
        )
        return JSONResponse(content)

    async def detokenize(self, request: Request) -> Response:
        """Answer POST /detokenize."""
        asked = parse(DetokenizeRequest, await self._body(request))
        model = self._model_or_the_only_one(asked.model)
        return JSONResponse(await self._text.detokenize(asked, model=model))

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

    async def openapi(self) -> Response:
        """Answer GET /openapi.json: the description of all this."""
        document = openapi_document(
            version=API_VERSION, has_keys=self._config.api_keys_file is not None
        )
        return JSONResponse(document)

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
        config = self._config
        return await whole_body(request, bytes_max=config.body_bytes_max, wait_s=config.body_wait_s)

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

    def _model_or_the_only_one(self, name: str | None) -> str:
        """Return the model asked for. Raises: ApiError."""
        if name is not None:
            self._require_model(name)
            return name
        models = self._view.models()
        if len(models) != 1:
            raise invalid("model: name one of the models served", parameter="model")
        return models[0].alias

    async def _answer(self, asked: ChatRequest | CompletionRequest, request: Request) -> Response:
        self._require_model(asked.model)
        order = await self._orders.order(
            asked,
            request_id=request_id_of(request),
            created_at_unix_s=self._clock.now_unix_ns() // NS_PER_S,
        )
        order = order.on_behalf_of(tenant_of(request))
        stream = (asked.stream_options or StreamOptions()) if asked.stream else None
        return await self._answering.answer(order, request, stream=stream)


def create_app(
    routes: Routes,
    *,
    files: FileRoutes,
    batches: BatchRoutes,
    dashboard: DashboardRoutes,
    measures: Measures,
    keys: ApiKeys | None = None,
) -> FastAPI:
    """Return the ASGI application; without keys everybody may ask."""
    app = FastAPI(openapi_url=None, redirect_slashes=False)
    post, get = ["POST"], ["GET"]
    app.add_api_route("/v1/chat/completions", routes.chat_completions, methods=post)
    app.add_api_route("/v1/completions", routes.completions, methods=post)
    app.add_api_route("/tokenize", routes.tokenize, methods=post)
    app.add_api_route("/detokenize", routes.detokenize, methods=post)
    app.add_api_route("/v1/models", routes.models, methods=get)
    app.add_api_route("/v1/models/{name:path}", routes.model, methods=get)
    app.add_api_route("/openapi.json", routes.openapi, methods=get)
    app.add_api_route("/health", routes.health, methods=get)
    app.add_api_route("/live", routes.live, methods=get)
    app.add_api_route("/metrics", routes.metrics, methods=get)
    dashboard.add_to(app)
    app.add_api_route("/v1/files", files.create, methods=post)
    app.add_api_route("/v1/files", files.list, methods=get)
    app.add_api_route("/v1/files/{file_id}", files.get, methods=get)
    app.add_api_route("/v1/files/{file_id}", files.delete, methods=["DELETE"])
    app.add_api_route("/v1/files/{file_id}/content", files.content, methods=get)
    app.add_api_route("/v1/batches", batches.create, methods=post)
    app.add_api_route("/v1/batches", batches.list, methods=get)
    app.add_api_route("/v1/batches/{batch_id}", batches.get, methods=get)
    app.add_api_route("/v1/batches/{batch_id}/cancel", batches.cancel, methods=post)
    app.add_api_route("/v1/batches/{batch_id}/pause", batches.pause, methods=post)
    app.add_api_route("/v1/batches/{batch_id}/resume", batches.resume, methods=post)
    answer_errors(app)
    if keys is not None:
        app.add_middleware(Authentication, keys=keys)
    app.add_middleware(RequestIds, measures=measures)
    return app


def _card(model: ServedModel) -> dict[str, object]:
    return {
        "id": model.alias,
        "object": "model",
        "created": model.first_heard_at_unix_ns // NS_PER_S,
        "owned_by": "tideserve",
        "max_model_len": model.context_tokens_max,
    }
