"""The shell: one HTTP server, one bus client, the reports in and out."""

import asyncio
import contextlib
import itertools
import os
import socket
from collections.abc import AsyncIterator, Callable, Generator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog
import uvicorn

from libs.client.batches import AskOptions, BatchClient
from libs.client.client import ClientOptions, TideClient
from libs.client.reader_events import ReaderOptions
from libs.contracts import subjects
from libs.contracts.online import RejectReason
from libs.contracts.reports import REPORTS, GatewayReport, Report
from libs.contracts.wire import encode
from libs.kernel.errors import ConfigError, ContractViolation, Unavailable
from libs.kernel.units import NS_PER_S
from libs.runtime.blob_store import open_blob_store
from libs.runtime.bus import Bus, CoreBus, Subscription
from libs.runtime.clock import Clock, SystemClock
from libs.runtime.tracing import Tracing
from services.http_gateway.api_keys import ApiKeys
from services.http_gateway.app import Routes, create_app
from services.http_gateway.batches.batch_routes import BatchRoutes
from services.http_gateway.batches.claims import BatchClaims
from services.http_gateway.batches.file_routes import FileRoutes
from services.http_gateway.batches.files import FileShelf
from services.http_gateway.config import GatewayConfig
from services.http_gateway.dashboard.cost import Prices
from services.http_gateway.dashboard.feed import DashboardFeed
from services.http_gateway.dashboard.routes import DashboardRoutes
from services.http_gateway.dashboard.view import DashboardView
from services.http_gateway.fleet_view import FleetView
from services.http_gateway.http_protocol import bounded_protocol
from services.http_gateway.measures import Measures

KEEP_ALIVE_S: Final = 75
"""An idle connection is closed after this long: well after clients stop to use it. httpx, and with
it OpenAI's client, gives one up after 5 s; to close it at that very moment would break requests."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningGateway:
    """A gateway that accepts connections."""

    http_url: str
    view: FleetView
    measures: Measures
    feed: DashboardFeed
    tasks: tuple[asyncio.Task[None], ...]

    async def until(self, stopping: asyncio.Event) -> None:
        """Return when told to stop. Raises what ended a part of the gateway before that."""
        told = asyncio.create_task(stopping.wait())
        try:
            done, _ = await asyncio.wait({told, *self.tasks}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            told.cancel()
        for task in done - {told}:
            task.result()


class _Server(uvicorn.Server):
    """A uvicorn server that says when it listens and leaves signals to the process."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        self.listening.set()


@asynccontextmanager
async def running_gateway(
    bus: Bus,
    config: GatewayConfig,
    *,
    clock: Clock | None = None,
    tracing: Tracing | None = None,
) -> AsyncIterator[RunningGateway]:
    """Serve HTTP until the block is left; then finish open streams within the configured wait.

    Raises: ConfigError if the address cannot be listened on, or the file of keys is not in order.
    """
    keys = None if config.api_keys_file is None else ApiKeys.read(Path(config.api_keys_file))
    clock = clock or SystemClock()
    measures = Measures()
    report_interval_ns = round(config.report_interval_s * NS_PER_S)
    view = FleetView(gateway_id=config.gateway_id, report_interval_ns=report_interval_ns)
    client = TideClient(bus, options=_client_options(config), clock=clock)
    routes = Routes(
        bus=bus,
        client=client,
        view=view,
        measures=measures,
        config=config,
        clock=clock,
        tracing=tracing,
    )
    feed = _dashboard_feed(bus, config, clock)
    measures.show_costs(feed.view.costs)
    files, batches = _batch_routes(bus, measures, config, clock)
    app = create_app(
        routes,
        files=files,
        batches=batches,
        dashboard=DashboardRoutes(feed),
        measures=measures,
        keys=keys,
    )
    listener = _listen(config)
    http_url = config.advertised_url or _url_of(listener)
    server = _Server(_server_config(app, config))
    async with client:

        def take(report: Report) -> None:
            view.take(report, now_ns=clock.now_ns(), now_unix_ns=clock.now_unix_ns())
            feed.take_report(report)

        tasks = [await _follow(bus, pattern, take) for pattern in subjects.ALL_REPORTS]
        tasks += await feed.start()
        tasks.append(asyncio.create_task(client.until_failed()))
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        await server.listening.wait()
        tasks.append(asyncio.create_task(_report(bus, client, config=config, http_url=http_url)))
        _log.info("listening", http_url=http_url)
        try:
            yield RunningGateway(
                http_url=http_url,
                view=view,
                measures=measures,
                feed=feed,
                tasks=(serving, *tasks),
            )
        finally:
            feed.close()
            server.should_exit = True
            await serving
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def _dashboard_feed(bus: Bus, config: GatewayConfig, clock: Clock) -> DashboardFeed:
    prices = Prices(
        spot_usd=config.spot_usd_per_gpu_hour, on_demand_usd=config.on_demand_usd_per_gpu_hour
    )
    view = DashboardView(gateway_id=config.gateway_id, prices=prices)
    return DashboardFeed(bus=bus, view=view, clock=clock)


def _batch_routes(
    bus: Bus, measures: Measures, config: GatewayConfig, clock: Clock
) -> tuple[FileRoutes, BatchRoutes]:
    asking = AskOptions(patience_ns=round(config.acceptance_wait_s * NS_PER_S))
    client = BatchClient(bus, options=asking, clock=clock)
    blobs = None if config.blob_store is None else open_blob_store(config.blob_store)
    shelf = FileShelf(client, blobs, clock)
    batches = BatchRoutes(
        batches=client,
        claims=BatchClaims(bus, clock),
        files=shelf,
        config=config,
        clock=clock,
    )
    return FileRoutes(shelf, measures=measures, config=config, clock=clock), batches


def _client_options(config: GatewayConfig) -> ClientOptions:
    return ClientOptions(
        # HTTP clients retry by themselves where a router is full; the other reasons pass soon.
        reader=ReaderOptions(
            acceptance_wait_ns=round(config.acceptance_wait_s * NS_PER_S),
            reasons_not_retried=frozenset({RejectReason.OVERLOADED}),
        ),
        streams_open_max=config.streams_open_max,
    )


def _server_config(app: object, config: GatewayConfig) -> uvicorn.Config:
    return uvicorn.Config(
        app,  # type: ignore[arg-type]
        http=bounded_protocol(head_bytes_max=config.head_bytes_max, headers_max=config.headers_max),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=config.shutdown_wait_s,
        timeout_keep_alive=KEEP_ALIVE_S,
    )


def _listen(config: GatewayConfig) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
        return socket.create_server((config.host, config.port), family=family, backlog=2048)
    except OSError as error:
        where = f"{config.host}:{config.port}"
        raise ConfigError(f"cannot listen on {where}: {error.strerror}") from None


def _url_of(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


async def _follow(bus: CoreBus, pattern: str, take: Callable[[Report], None]) -> asyncio.Task[None]:
    """Begin to listen; each report is decoded once, whoever wants it."""
    reports = await bus.subscribe(pattern)
    return asyncio.create_task(_listen_to(reports, take))


async def _listen_to(reports: Subscription, take: Callable[[Report], None]) -> None:
    try:
        async for message in reports:
            try:
                take(REPORTS.decode(message.payload))
            except ContractViolation:
                continue  # Somebody else's mistake; the next report replaces it.
    finally:
        await reports.close()


async def _report(
    bus: CoreBus, client: TideClient, *, config: GatewayConfig, http_url: str
) -> None:
    for beat in itertools.count():
        report = GatewayReport(
            gateway_id=config.gateway_id,
            beat=beat,
            process_id=os.getpid(),
            http_url=http_url,
            streams_open=client.streams_open,
        )
        # While the broker is away, the report of a moment later is as good.
        with contextlib.suppress(Unavailable):
            await bus.publish(subjects.gateway_report(config.gateway_id), encode(report))
        await asyncio.sleep(config.report_interval_s)
