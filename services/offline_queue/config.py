"""Settings of one offline queue process (`OFFLINE_QUEUE__FIELD` in the environment)."""

from dataclasses import dataclass
from typing import Literal

from libs.kernel.errors import ConfigError
from libs.runtime.bus import STREAM_REPLICAS


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueConfig:
    """What an operator sets."""

    nats_url: str = "nats://127.0.0.1:4222"
    """Broker to connect to; several, comma-separated, are one cluster."""
    stream_replicas: int = 1
    """Copies that the brokers of a cluster keep of each stream: 3 there, the same for all services;
    1 for a broker alone."""
    queue_id: str = "offline-queue"
    """Shown in reports and logs; each start appends a number of its own."""
    blob_store: str = "folder:.tideserve/blobs"
    """Where the files of batches lie: `folder:/path`, which all queues and gateways see, or
    `s3://bucket/prefix?endpoint=`, with the extra `s3`."""
    lines_running_max: int = 256
    """Lines with the routers at once, whatever the fleet could take. Each holds its answer in
    memory until it ends."""
    lease_s: float = 30.0
    """How long a part of a dead queue waits for another one. Every queue of a fleet has the same.
    Longer than the 8 s that a broker's cluster may need to elect a leader."""
    report_interval_s: float = 1.0
    """How often the queue reports itself."""
    survey_interval_s: float = 2.0
    """How often it looks at every open batch."""
    urgent_share: float = 0.25
    """Of the lines running, how many may rise above the priority of offline work when deadlines
    come near."""
    metrics_host: str = "127.0.0.1"
    """Address for metrics and health."""
    metrics_port: int | None = None
    """Port for metrics and health; None serves neither."""
    log_format: Literal["json", "console"] = "json"
    """json or console."""
    log_level: str = "info"
    """debug, info, warning or error."""

    def __post_init__(self) -> None:
        if self.stream_replicas not in STREAM_REPLICAS:
            raise ConfigError("stream_replicas: must be 1, 3 or 5")
        for name in ("lines_running_max", "lease_s", "report_interval_s", "survey_interval_s"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name}: must be positive")
        if not 0 <= self.urgent_share <= 1:
            raise ConfigError("urgent_share: must lie between 0 and 1")
