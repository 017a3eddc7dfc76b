"""Settings of one offline queue process (`OFFLINE_QUEUE__FIELD` in the environment)."""

from dataclasses import dataclass

from libs.kernel.errors import ConfigError
from libs.runtime.config import require_positive
from libs.runtime.service import StoringConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueConfig(StoringConfig):
    """What an operator sets."""

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

    def __post_init__(self) -> None:
        StoringConfig.__post_init__(self)  # a class with slots has no super() without arguments
        require_positive(
            self, "lines_running_max", "lease_s", "report_interval_s", "survey_interval_s"
        )
        if not 0 <= self.urgent_share <= 1:
            raise ConfigError("urgent_share: must lie between 0 and 1")
