"""Settings of one online router process (`ONLINE_ROUTER__FIELD` in the environment)."""

from dataclasses import dataclass
from typing import Literal

from libs.kernel.errors import ConfigError
from libs.runtime.bus import STREAM_REPLICAS


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterConfig:
    """What an operator sets; everything else is in RouterOptions, with its reason."""

    nats_url: str = "nats://127.0.0.1:4222"
    """Broker to connect to; several, comma-separated, are one cluster."""
    stream_replicas: int = 1
    """Copies that the brokers of a cluster keep of each stream: 3 there, the same for all services;
    1 for a broker alone."""
    router_id: str = "router"
    """Prefix of this process's id; a random suffix makes it unique per start."""
    models: tuple[str, ...] = ()
    """Models to tokenise for, each `alias=path`, or a path whose last part becomes the alias."""
    sessions_max: int = 2048
    """Open requests; past it a submission is rejected as overloaded, with a time to wait."""
    ttft_slo_ms: int = 1_000
    """An online request should see its first token within this: what is counted as attainment,
    and nothing else. Set what you promise."""
    tpot_slo_ms: int = 100
    """And each later one, on average over its answer, within this: faster than people read."""
    log_format: Literal["json", "console"] = "json"
    """json for machines, console for people."""
    log_level: str = "info"
    """debug, info, warning or error."""
    otlp_endpoint: str | None = None
    """Where traces go: an OTLP receiver over HTTP, such as http://127.0.0.1:4318; None: nowhere."""
    metrics_port: int | None = None
    """Port of /metrics, /live and /health; none serves them not at all."""
    metrics_host: str = "127.0.0.1"
    """Address that the metrics port listens on."""

    def __post_init__(self) -> None:
        if self.stream_replicas not in STREAM_REPLICAS:
            raise ConfigError("stream_replicas: must be 1, 3 or 5")
        if not self.models:
            raise ConfigError("models: name at least one model to serve")
        for name in ("ttft_slo_ms", "tpot_slo_ms"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: must be at least 1")
        if self.sessions_max < 1:
            raise ConfigError("sessions_max: must be at least 1")
