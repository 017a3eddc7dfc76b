"""Settings of one migrator process (`MIGRATOR__FIELD` in the environment)."""

from dataclasses import dataclass
from typing import Literal

from libs.contracts.subjects import alias_of
from libs.kernel.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class MigratorConfig:
    """What an operator sets; everything else is in MigratorOptions, with its reason."""

    nats_url: str = "nats://127.0.0.1:4222"
    """Broker to connect to; several, comma-separated, are one cluster."""
    migrator_id: str = "migrator"
    """Prefix of this process's id; a random suffix makes it unique per start."""
    alias: str = ""
    """The model whose fleet this migrator looks after."""
    profile: str = ""
    """File with the model's measured profile, for the order of layers; empty: ascending order."""
    link_mib_per_s: int = 1024
    """Assumed of a link that nobody has measured yet, in MiB/s."""
    prefill_tokens_per_s: int = 5_000
    """Assumed speed of computing KV anew; under spotserve KV moves only where that is faster."""
    load_buffer_mib: int = 64
    """Memory beyond its weights that a worker may use while it loads."""
    log_format: Literal["json", "console"] = "json"
    """json for machines, console for people."""
    log_level: str = "info"
    """debug, info, warning or error."""
    metrics_port: int | None = None
    """Port of /metrics, /live and /health; none serves them not at all."""
    metrics_host: str = "127.0.0.1"
    """Address that the metrics port listens on."""

    def __post_init__(self) -> None:
        if not self.alias or alias_of(self.alias) != self.alias:
            raise ConfigError("alias: name the model's alias, of a-z, 0-9, _ and -")
        for name in ("link_mib_per_s", "prefill_tokens_per_s", "load_buffer_mib"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: must be at least 1")
