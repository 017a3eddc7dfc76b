"""Settings of one online router process (`ONLINE_ROUTER__FIELD` in the environment)."""

from dataclasses import dataclass

from libs.kernel.errors import ConfigError
from libs.runtime.config import require_at_least
from libs.runtime.service import StoringConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterConfig(StoringConfig):
    """What an operator sets; everything else is in RouterOptions, with its reason."""

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
    otlp_endpoint: str | None = None
    """Where traces go: an OTLP receiver over HTTP, such as http://127.0.0.1:4318; None: nowhere."""

    def __post_init__(self) -> None:
        StoringConfig.__post_init__(self)  # a class with slots has no super() without arguments
        if not self.models:
            raise ConfigError("models: name at least one model to serve")
        require_at_least(1, self, "ttft_slo_ms", "tpot_slo_ms", "sessions_max")
