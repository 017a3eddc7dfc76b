"""Periodic state: each report tells the whole, replaces its predecessor and may be lost.

Reports are also the heartbeat. Silence of a peer counts only while the observer hears the echo of
its own report through the broker.
"""

from typing import Annotated, Literal

from pydantic import Field

from libs.contracts.wire import Codec, Message, SubjectToken

PREFIX_HASHES_MAX = 512
"""Cached block hashes in one report; the most recently used ones are kept."""


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
    sessions_adopted: int = Field(default=0, ge=0)
    sessions_resumed: int = Field(default=0, ge=0)
    workers_lost: int = Field(default=0, ge=0, description="workers declared dead")
    tokens_relayed: int = Field(default=0, ge=0)
    stale_dropped: int = Field(default=0, ge=0, description="messages of an older epoch or owner")


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


Report = WorkerReport | RouterReport | GatewayReport
REPORTS: Codec[Report] = Codec(Annotated[Report, Field(discriminator="type")])
