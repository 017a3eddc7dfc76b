"""Settings of one HTTP gateway process (`HTTP_GATEWAY__FIELD` in the environment)."""

from dataclasses import dataclass

from libs.contracts.batches import BATCH_FILE_BYTES_MAX
from libs.kernel.errors import ConfigError
from libs.kernel.units import KIB, MIB
from libs.runtime.config import require_positive


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayConfig:
    """What an operator sets."""

    nats_url: str = "nats://127.0.0.1:4222"
    """Broker to connect to; several, comma-separated, are one cluster."""
    gateway_id: str = "gateway"
    """Prefix of this process's id; a random suffix makes it unique per start."""
    host: str = "127.0.0.1"
    """Address to listen on. Without api_keys_file open it to trusted networks only."""
    port: int = 8000
    """Port to listen on; 0 takes a free one, which the report and the log then tell."""
    api_keys_file: str | None = None
    """Who may ask: lines of `KEY [TENANT]`, read at the start. None: whoever reaches the port."""
    advertised_url: str | None = None
    """Where clients reach this gateway, for its reports: the address in front of a container, say.
    None reports the address it listens on."""
    blob_store: str | None = None
    """Where the files of batches lie: `folder:/path`, a folder that gateways and offline queues
    share, or `s3://bucket/prefix`. None: files are refused."""
    body_bytes_max: int = 4 * MIB
    """Largest request body; read no further than that. JSON takes several times the room of the
    message made of it, which the broker bounds in turn (1 MB)."""
    head_bytes_max: int = 64 * KIB
    """Request line and headers together; past it the connection is answered 431 and closed."""
    headers_max: int = 128
    """Number of headers; the same rule."""
    body_wait_s: float = 30.0
    """A body that takes longer to arrive is answered 408."""
    upload_bytes_max: int = BATCH_FILE_BYTES_MAX
    """Largest file of a batch: OpenAI's 200 MB, the most that the offline queue takes."""
    upload_lifetime_s: int = 30 * 86_400
    """An uploaded file goes away after this long, unless its upload says otherwise; as OpenAI's."""
    upload_wait_s: float = 900.0
    """A file that takes longer to arrive is answered 408: 200 MB at 2 Mbit/s."""
    uploads_open_max: int = 32
    """Files uploaded at once, each of which takes some MB of memory; past it 429."""
    request_timeout_s: float = 3600.0
    """A request not finished after this long fails as expired."""
    acceptance_wait_s: float = 10.0
    """How long to ask where no router, or no offline queue, answers; then 503. Longer than the 8 s
    that a broker's cluster may need to elect a leader."""
    streams_open_max: int = 4096
    """Requests open at once; past it a new one is answered 429."""
    spot_usd_per_gpu_hour: float = 0.476
    """What the dashboard reckons with: a T4 of a g4dn.12xlarge as SpotServe paid for it in 2023,
    1.9046 for four. Set what you pay."""
    on_demand_usd_per_gpu_hour: float = 0.978
    """The same machine on demand, 3.912 for four."""
    otlp_endpoint: str | None = None
    """Where traces go: an OTLP receiver over HTTP, such as http://127.0.0.1:4318; None: nowhere."""
    report_interval_s: float = 1.0
    """How often the gateway reports itself, and hears by its echo that the broker is there."""
    shutdown_wait_s: int = 30
    """How long open streams may go on after SIGTERM; then they are cut off and cancelled."""

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65_535:
            raise ConfigError("port: must lie between 0 and 65535")
        require_positive(
            self,
            "body_bytes_max",
            "head_bytes_max",
            "headers_max",
            "body_wait_s",
            "upload_bytes_max",
            "upload_lifetime_s",
            "upload_wait_s",
            "uploads_open_max",
            "request_timeout_s",
            "acceptance_wait_s",
            "streams_open_max",
            "report_interval_s",
            "shutdown_wait_s",
        )
        if min(self.spot_usd_per_gpu_hour, self.on_demand_usd_per_gpu_hour) < 0:
            raise ConfigError("spot_usd_per_gpu_hour, on_demand_usd_per_gpu_hour: not below 0")
        if self.request_timeout_s > 86_400:
            raise ConfigError("request_timeout_s: a day is the longest")
