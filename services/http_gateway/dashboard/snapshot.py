"""What the page is told each second: plain values, units last in their names, JSON as it stands.

Every number is one of a report's, a sum of them, or derived in `view` by the formula written there.
"""

from dataclasses import dataclass

Percent = float


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One worker: a device and what it computes."""

    worker_id: str
    alias: str
    replica_id: str
    """Empty: a spare, or a whole model alone."""
    position: str
    """Such as `stage 1 of 2, shard 0 of 2`."""
    state: str
    sessions_running: int
    sessions_waiting: int
    kv_percent: Percent
    tokens_generated: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A machine that may be taken away as a whole."""

    node_id: str
    market: str
    seconds_left: int | None
    """Until it ends, by its own clock; None: it stays, as far as is known."""
    gpus: tuple[Gpu, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Zone:
    """Where nodes are; what is taken away is often taken from one zone."""

    zone: str
    nodes: tuple[Node, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Replica:
    """Workers that compute together."""

    replica_id: str
    alias: str
    stages: int
    shards: int
    workers: int
    state: str
    sessions_running: int
    sessions_waiting: int
    step_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class NoticeShown:
    """A node's end that is announced."""

    node_id: str
    notice_id: str
    kind: str
    source: str
    seconds_left: int | None
    """None: the cloud does not say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Migration:
    """A hand-over, under way or ended lately."""

    handover_id: str
    state: str
    policy: str
    is_over: bool
    source_replica_ids: tuple[str, ...]
    target_replica_ids: tuple[str, ...]
    kv_bytes_moved: int
    kv_bytes_planned: int
    weight_bytes_from_peers: int
    weight_bytes_from_disk: int
    sessions_released: int
    stall_ms: float
    age_s: int
    """Since it entered its state."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What the leading planner and the owning migrator say."""

    plan_revision: int
    plan_revision_reached: int
    policy: str
    reason: str
    why_no_plan: str
    handovers_done: int
    handovers_abandoned: int
    kv_bytes_moved: int
    weight_bytes_moved: int
    tokens_recomputed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Online:
    """Requests that somebody waits for. Latencies are of the last minute, of the worst router."""

    requests_open: int
    requests_accepted: int
    requests_rejected: int
    requests_failed: int
    ttft_ms_p50: float | None
    ttft_ms_p99: float | None
    tpot_ms_p50: float | None
    tpot_ms_p99: float | None
    ttft_slo_ms: float
    tpot_slo_ms: float
    attainment_percent: Percent | None
    """Of online requests that ended since the routers started; None: none has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Offline:
    """Work that fills what online traffic leaves."""

    tokens_generated: int
    """For requests of offline priority, since the routers started."""
    tokens_harvested: int
    """Prompt and answer of lines that ended, since the queues started."""
    batches_open: int
    lines_waiting: int
    lines_running: int
    lines_completed: int
    lines_failed: int
    lines_expired: int
    laxity_s_min: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchShown:
    """One batch and how far it is."""

    batch_id: str
    alias: str
    status: str
    is_paused: bool
    lines_total: int
    lines_completed: int
    lines_failed: int
    progress_percent: Percent
    deadline_in_s: int
    """Negative: past. Of a batch that is over, as of its end it does not matter."""
    warning: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What the GPUs heard of cost, by the gateway's prices, since it started."""

    usd_per_hour: float
    on_demand_usd_per_hour: float
    """Of the same GPUs, all bought on demand."""
    usd: float
    on_demand_usd: float
    saved_percent: Percent | None
    hours: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """The fleet in numbers."""

    nodes: int
    nodes_spot: int
    nodes_on_demand: int
    nodes_leaving: int
    gpus: int
    replicas_serving: int
    routers: int
    gateways: int
    sessions_running: int
    sessions_waiting: int
    tokens_generated: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One point of the charts."""

    at_unix_ms: int
    ttft_ms_p99: float | None
    tpot_ms_p99: float | None
    online_tokens_per_s: float
    offline_tokens_per_s: float
    usd_per_hour: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The whole page, but for the past."""

    at_unix_ms: int
    gateway_id: str
    is_broker_heard: bool
    totals: Totals
    zones: tuple[Zone, ...]
    nodes_hidden: int
    """Past the bound of the page; they are in the totals."""
    replicas: tuple[Replica, ...]
    notices: tuple[NoticeShown, ...]
    plan: Plan
    migrations: tuple[Migration, ...]
    online: Online
    offline: Offline
    batches: tuple[BatchShown, ...]
    cost: Cost
    sample: Sample
