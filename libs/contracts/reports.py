"""Periodic state: each report tells the whole, replaces its predecessor and may be lost.

Reports are also the heartbeat. Silence of a peer counts only while the observer hears the echo of
its own report through the broker.
"""

from enum import StrEnum
from typing import Annotated, Literal, TypeVar

from pydantic import Field

from libs.contracts.wire import Codec, Message, SubjectToken

PREFIX_HASHES_MAX = 512
"""Cached block hashes in one report; the most recently used ones are kept."""


LINK_RATES_MAX = 64


class Market(StrEnum):
    """How a node was bought."""

    SPOT = "spot"
    ON_DEMAND = "on_demand"


class LinkRate(Message):
    """What a transfer to this peer was measured to reach lately."""

    peer_worker_id: SubjectToken
    bytes_per_s: int = Field(ge=0)


class ReportedPosition(Message):
    """The part of a replica that a worker computes."""

    replica_id: SubjectToken
    replica_epoch: int = Field(ge=1)
    stages: int = Field(ge=1)
    shards: int = Field(ge=1)
    stage: int = Field(ge=0)
    shard: int = Field(ge=0)
    is_broken: bool = Field(default=False, description="a peer was lost; nothing can be computed")


class MemoryRule(Message):
    """How a worker holds weights: what the planner must know to place only what fits."""

    element_bytes: int = Field(ge=1, description="of weights and KV")
    packed_copies: int = Field(
        default=0, ge=0, description="of every linear, beside the plain weights that peers fetch"
    )
    row_copy_bytes_max: int = Field(
        default=0, ge=0, description="further copies of linears, for single rows"
    )


class WorkerReport(Message):
    """Load, cache state and liveness of one worker.

    Sent by a worker to `worker_report(worker_id)` every report interval. Handled by routers and by
    whoever watches. Lost: the next one replaces it; several missed in a row mean a dead worker.
    """

    type: Literal["worker_report.v1"] = "worker_report.v1"
    worker_id: SubjectToken
    beat: int = Field(ge=0, description="counts the reports of this process from 0")
    alias: SubjectToken
    process_id: int = Field(ge=0)
    is_draining: bool = False
    context_tokens_max: int = Field(ge=1)
    vocabulary_size: int = Field(ge=1)
    block_tokens: int = Field(ge=1)
    blocks_total: int = Field(ge=0)
    blocks_free: int = Field(ge=0)
    sessions_running: int = Field(ge=0)
    sessions_waiting: int = Field(ge=0)
    tokens_waiting: int = Field(ge=0, description="prompt tokens not yet computed")
    tokens_generated: int = Field(ge=0, description="since the start of this process")
    steps: int = Field(ge=0)
    step_ms_recent: float = Field(ge=0.0)
    prefix_hashes: tuple[Annotated[int, Field(ge=0, lt=2**64)], ...] = Field(
        default=(),
        max_length=PREFIX_HASHES_MAX,
        description="cached block hashes, the most recently used first",
    )
    node_id: SubjectToken | None = None
    zone: SubjectToken | None = None
    market: Market = Market.ON_DEMAND
    is_planned: bool = Field(default=False, description="computes what the placement says")
    is_serving: bool = Field(
        default=True, description="takes sessions: the lead of a replica that is active"
    )
    position: ReportedPosition | None = Field(
        default=None, description="what it serves; None: nothing yet, or a whole model alone"
    )
    peer_address: str = Field(default="", max_length=256, description="for KV, weights and plans")
    memory_bytes: int = Field(default=0, ge=0, description="for weights and KV, both positions")
    memory_rule: MemoryRule | None = Field(
        default=None, description="of a planned worker; None: each weight is held once"
    )
    weights_bytes: int = Field(default=0, ge=0, description="held now")
    kv_tokens: int = Field(default=0, ge=0, description="of the sessions that run here")
    grace_left_ms: int | None = Field(
        default=None, ge=0, description="until this node ends, on its own clock"
    )
    sessions_running_max: int = Field(
        default=0, ge=0, description="that run at once, at most; 0: leads no replica"
    )
    tokens_recomputed: int = Field(
        default=0, ge=0, description="of moved sessions, since the start of this process"
    )
    link_rates: tuple[LinkRate, ...] = Field(default=(), max_length=LINK_RATES_MAX)
    prefill_tokens_per_s: int = Field(
        default=0, ge=0, description="by steps measured here; 0: leads no replica"
    )
    coserve: str = Field(default="", max_length=64, description="how both tides are served")
    offline_running: int = Field(default=0, ge=0, description="of sessions_running")
    offline_waiting: int = Field(default=0, ge=0, description="of sessions_waiting")
    offline_tokens_waiting: int = Field(default=0, ge=0, description="of tokens_waiting")
    blocks_offline: int = Field(default=0, ge=0, description="with KV of running offline sessions")
    blocks_offline_stored: int = Field(
        default=0, ge=0, description="of these, what costs no computing to evict"
    )
    blocks_reserved_for_online: int = Field(
        default=0, ge=0, description="of blocks_free, what offline work leaves alone"
    )
    is_profile_off: bool = Field(
        default=False, description="steps take much more or less time than profiled or assumed"
    )
    prediction_error: float = Field(
        default=0.0, ge=0.0, description="mean relative error of predicted step times, lately"
    )
    steps_online: int = Field(default=0, ge=0, description="without offline work, since the start")
    steps_mixed: int = Field(default=0, ge=0)
    steps_offline: int = Field(default=0, ge=0, description="without online work")
    steps_yielded: int = Field(default=0, ge=0, description="given up for an online session")
    tokens_online: int = Field(default=0, ge=0, description="computed, prompt and answer")
    tokens_offline: int = Field(default=0, ge=0, description="likewise: the harvest")
    tokens_yielded: int = Field(default=0, ge=0, description="thrown away by steps given up")
    tokens_repeated: int = Field(default=0, ge=0, description="computed again after an eviction")
    evictions_stored: int = Field(
        default=0, ge=0, description="offline sessions that made room at no cost in computing"
    )
    evictions_recomputed: int = Field(
        default=0, ge=0, description="offline sessions that made room and are computed again"
    )
    preemptions: int = Field(default=0, ge=0, description="sessions that gave blocks to their kind")
    ttft_met: int = Field(default=0, ge=0, description="online sessions within the SLO, here")
    ttft_missed: int = Field(default=0, ge=0)
    tbt_met: int = Field(default=0, ge=0, description="further online tokens within the SLO")
    tbt_missed: int = Field(default=0, ge=0)
    predicted_ns: int = Field(default=0, ge=0, description="of all steps that ran to their end")
    observed_ns: int = Field(default=0, ge=0, description="what the same steps took")


class RouterReport(Message):
    """Load and liveness of one router, and the journal that it owns.

    Sent by a router to `router_report(router_id)` every report interval. Handled by the other
    routers, and by itself as its echo. Lost: the next one replaces it; several missed in a row
    let another router take the journal over.
    """

    type: Literal["router_report.v1"] = "router_report.v1"
    router_id: SubjectToken
    beat: int = Field(ge=0, description="counts the reports of this process from 0")
    journal_id: SubjectToken
    process_id: int = Field(ge=0)
    sessions_open: int = Field(ge=0)
    sessions_accepted: int = Field(ge=0, description="since the start of this process")
    sessions_waiting: int = Field(
        default=0, ge=0, description="of sessions_open, those that no worker has room for"
    )
    sessions_adopted: int = Field(default=0, ge=0)
    sessions_resumed: int = Field(default=0, ge=0)
    workers_lost: int = Field(default=0, ge=0, description="workers declared dead")
    tokens_relayed: int = Field(default=0, ge=0)
    stale_dropped: int = Field(default=0, ge=0, description="messages of an older epoch or owner")
    requests_rejected: int = Field(default=0, ge=0, description="since the start of this process")
    requests_failed: int = Field(default=0, ge=0, description="accepted, ended without an answer")
    tokens_offline: int = Field(default=0, ge=0, description="of those relayed, for offline work")
    online_ended: int = Field(
        default=0, ge=0, description="online requests, but for those that their client cancelled"
    )
    online_within_slo: int = Field(default=0, ge=0, description="of those, both objectives met")
    ttft_slo_ms: float = Field(default=0.0, ge=0.0, description="0: this router counts none")
    tpot_slo_ms: float = Field(default=0.0, ge=0.0)
    ttft_ms_p50: float | None = Field(
        default=None, ge=0.0, description="online, of the last minute; None: there was nothing"
    )
    ttft_ms_p99: float | None = Field(default=None, ge=0.0)
    tpot_ms_p50: float | None = Field(default=None, ge=0.0)
    tpot_ms_p99: float | None = Field(default=None, ge=0.0)


class GatewayReport(Message):
    """Address and liveness of one HTTP gateway.

    Sent by a gateway to `gateway_report(gateway_id)` every report interval, for people and tools
    that list the fleet. Lost: the next one replaces it.
    """

    type: Literal["gateway_report.v1"] = "gateway_report.v1"
    gateway_id: SubjectToken
    beat: int = Field(ge=0)
    process_id: int = Field(ge=0)
    http_url: str
    streams_open: int = Field(ge=0)


class PlannerReport(Message):
    """Liveness of one planner, and what the leading one believes.

    Sent by a planner to `planner_report(planner_id)` every report interval; its echo lets silence
    count. Lost: the next one replaces it.
    """

    type: Literal["planner_report.v1"] = "planner_report.v1"
    planner_id: SubjectToken
    beat: int = Field(ge=0)
    process_id: int = Field(ge=0)
    alias: SubjectToken
    is_leader: bool = False
    policy: str = ""
    plan_revision: int = Field(default=0, ge=0)
    nodes_live: int = Field(default=0, ge=0)
    nodes_leaving: int = Field(default=0, ge=0)
    requests_per_s: float = Field(default=0.0, ge=0.0, description="arrivals over the window")
    plans_made: int = Field(default=0, ge=0, description="since the start of this process")
    plan_ms_recent: float = Field(default=0.0, ge=0.0)
    why_no_plan: str = Field(default="", max_length=1024, description="no shape fits, and why")


class MigratorReport(Message):
    """Liveness of one migrator, and the hand-over that it carries out.

    Sent by a migrator to `migrator_report(migrator_id)` every report interval and at every change.
    Lost: the next one replaces it.
    """

    type: Literal["migrator_report.v1"] = "migrator_report.v1"
    migrator_id: SubjectToken
    beat: int = Field(ge=0)
    process_id: int = Field(ge=0)
    alias: SubjectToken
    is_owner: bool = False
    handover_id: str = ""
    state: str = ""
    plan_revision_reached: int = Field(default=0, ge=0, description="the fleet has this shape")
    handovers_done: int = Field(default=0, ge=0)
    handovers_abandoned: int = Field(default=0, ge=0)
    weight_bytes_moved: int = Field(default=0, ge=0)
    kv_bytes_moved: int = Field(default=0, ge=0)
    stall_ms_recent: float = Field(default=0.0, ge=0.0, description="from stop to release")


class OfflineQueueReport(Message):
    """Load and liveness of one offline queue.

    Sent by a queue to `offline_queue_report(queue_id)` every report interval. Handled by the
    planner, whose demand it is, and by whoever watches. Lost: the next one replaces it.
    """

    type: Literal["offline_queue_report.v1"] = "offline_queue_report.v1"
    queue_id: SubjectToken
    beat: int = Field(ge=0)
    process_id: int = Field(ge=0)
    batches_open: int = Field(default=0, ge=0, description="of all queues: not final")
    lines_waiting: int = Field(default=0, ge=0, description="of all queues: accepted, not taken up")
    lines_running: int = Field(default=0, ge=0, description="submitted by this queue, not ended")
    lines_running_max: int = Field(default=0, ge=0, description="what harvesting allows it now")
    lines_completed: int = Field(default=0, ge=0, description="since the start of this process")
    lines_failed: int = Field(default=0, ge=0)
    lines_expired: int = Field(default=0, ge=0)
    tokens_harvested: int = Field(
        default=0, ge=0, description="prompt and answer, counted as they come"
    )
    tokens_due: int = Field(
        default=0, ge=0, description="of all queues: predicted tokens of all lines not ended"
    )
    tokens_per_s_due: float = Field(
        default=0.0, ge=0.0, description="likewise: the least rate at which no deadline is missed"
    )
    requests_submitted: int = Field(
        default=0, ge=0, description="to routers, by this process since its start; repeats are one"
    )
    laxity_s_min: float | None = Field(
        default=None, description="least time to spare of any batch; negative: it will be late"
    )


Report = (
    WorkerReport
    | RouterReport
    | GatewayReport
    | PlannerReport
    | MigratorReport
    | OfflineQueueReport
)
ReportT = TypeVar(
    "ReportT",
    WorkerReport,
    RouterReport,
    GatewayReport,
    PlannerReport,
    MigratorReport,
    OfflineQueueReport,
)


def sender_id(report: Report) -> str:
    """Return the id of the process that sent the report, unique among those of its kind."""
    match report:
        case WorkerReport():
            return report.worker_id
        case RouterReport():
            return report.router_id
        case GatewayReport():
            return report.gateway_id
        case PlannerReport():
            return report.planner_id
        case MigratorReport():
            return report.migrator_id
        case OfflineQueueReport():
            return report.queue_id


REPORTS: Codec[Report] = Codec(Annotated[Report, Field(discriminator="type")])
