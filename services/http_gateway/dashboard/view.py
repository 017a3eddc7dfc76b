"""From what was heard to what is shown: a pure function of Heard and two clocks."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

from libs.contracts.batches import BatchRecord
from libs.contracts.handover_record import HandoverStory, HandoverTotals
from libs.contracts.reports import Market, RouterReport, WorkerReport
from libs.kernel.units import NS_PER_MS, NS_PER_S, milliseconds
from services.http_gateway.dashboard.cost import NS_PER_HOUR, CostMeter, Prices
from services.http_gateway.dashboard.heard import Heard, HeardNotice
from services.http_gateway.dashboard.history import History, TokenRates
from services.http_gateway.dashboard.snapshot import (
    BatchShown,
    Cost,
    Gpu,
    Migration,
    Node,
    NoticeShown,
    Offline,
    Online,
    Plan,
    Replica,
    Sample,
    Snapshot,
    Totals,
    Zone,
)

ECHO_NS_MAX: Final = 4 * NS_PER_S
NODES_SHOWN_MAX: Final = 256
BATCHES_SHOWN_MAX: Final = 50
MIGRATIONS_ENDED_SHOWN: Final = 5
NO_ZONE: Final = "no zone"


class DashboardView:
    """Makes snapshots, and keeps what only time shows: costs, rates, the past."""

    def __init__(self, *, gateway_id: str, prices: Prices) -> None:
        self.heard = Heard(gateway_id=gateway_id)
        self.history = History()
        self.costs = CostMeter(prices)
        self._gateway_id = gateway_id
        self._rates = TokenRates()

    def tick(self, *, now_ns: int, now_unix_ns: int) -> Sample:
        """Charge what has been used since the last tick, and add a sample to the past."""
        routers = self.heard.routers()
        gpus = Counter(report.market for report in self.heard.workers())
        self.costs.advance(gpus, now_ns=now_ns)
        online = _online(routers)
        online_rate, offline_rate = self._rates.look(routers, now_ns=now_ns)
        sample = Sample(
            at_unix_ms=now_unix_ns // NS_PER_MS,
            ttft_ms_p99=online.ttft_ms_p99,
            tpot_ms_p99=online.tpot_ms_p99,
            online_tokens_per_s=online_rate,
            offline_tokens_per_s=offline_rate,
            usd_per_hour=self.costs.usd_per_hour,
        )
        self.history.add(sample)
        return sample

    def snapshot(self, sample: Sample, *, now_ns: int, now_unix_ns: int) -> Snapshot:
        """Return what there is to show now; changes nothing."""
        heard = self.heard
        workers = heard.workers()
        notices = heard.notices(now_ns=now_ns)
        nodes = _nodes(workers, notices, now_ns=now_ns)
        replicas = _replicas(workers)
        return Snapshot(
            at_unix_ms=now_unix_ns // NS_PER_MS,
            gateway_id=self._gateway_id,
            is_broker_heard=heard.echo_at_ns is not None
            and now_ns - heard.echo_at_ns <= ECHO_NS_MAX,
            totals=_totals(heard, workers, [node for _, node in nodes], replicas),
            zones=_zones(nodes[:NODES_SHOWN_MAX]),
            nodes_hidden=max(0, len(nodes) - NODES_SHOWN_MAX),
            replicas=replicas,
            notices=tuple(_notice(notice, now_ns=now_ns) for notice in notices),
            plan=_plan(heard, workers),
            migrations=_migrations(heard, now_unix_ns=now_unix_ns),
            online=_online(heard.routers()),
            offline=_offline(heard),
            batches=tuple(
                _batch(record, now_unix_s=now_unix_ns // NS_PER_S)
                for record in heard.batches[:BATCHES_SHOWN_MAX]
            ),
            cost=self._cost(),
            sample=sample,
        )

    def _cost(self) -> Cost:
        costs = self.costs
        return Cost(
            usd_per_hour=costs.usd_per_hour,
            on_demand_usd_per_hour=costs.on_demand_usd_per_hour,
            usd=costs.usd,
            on_demand_usd=costs.on_demand_usd,
            saved_percent=costs.saved_percent,
            hours=costs.elapsed_ns / NS_PER_HOUR,
        )


# ---------------------------------------------------------------------- nodes and replicas


def _nodes(
    workers: Sequence[WorkerReport], notices: Sequence[HeardNotice], *, now_ns: int
) -> list[tuple[str, Node]]:
    """Return each node with its zone, by zone and id; a worker without a node is one by itself."""
    members: dict[str, list[WorkerReport]] = {}
    for report in workers:
        members.setdefault(report.node_id or report.worker_id, []).append(report)
    announced = _announced_seconds(notices, now_ns=now_ns)
    nodes = []
    for node_id, reports in members.items():
        own = [r.grace_left_ms // 1000 for r in reports if r.grace_left_ms is not None]
        node = Node(
            node_id=node_id,
            market=reports[0].market.value,
            seconds_left=min(own) if own else announced.get(node_id),
            gpus=tuple(_gpu(report) for report in reports),
        )
        zone = next((r.zone for r in reports if r.zone is not None), NO_ZONE)
        nodes.append((zone, node))
    return sorted(nodes, key=lambda item: (item[0], item[1].node_id))


def _announced_seconds(notices: Sequence[HeardNotice], *, now_ns: int) -> dict[str, int]:
    left: dict[str, int] = {}
    for heard in reversed(notices):  # the most urgent last, which then stands
        left_ns = heard.left_ns(now_ns=now_ns)
        if left_ns is not None:
            left[heard.notice.node_id] = max(0, left_ns // NS_PER_S)
    return left


def _zones(nodes: Iterable[tuple[str, Node]]) -> tuple[Zone, ...]:
    by_zone: dict[str, list[Node]] = {}
    for zone, node in nodes:
        by_zone.setdefault(zone, []).append(node)
    return tuple(Zone(zone=zone, nodes=tuple(by_zone[zone])) for zone in sorted(by_zone))


def _gpu(report: WorkerReport) -> Gpu:
    position = report.position
    where = ""
    if position is not None:
        where = (
            f"stage {position.stage + 1} of {position.stages}, "
            f"shard {position.shard + 1} of {position.shards}"
        )
    used = report.blocks_total - report.blocks_free
    return Gpu(
        worker_id=report.worker_id,
        alias=report.alias,
        replica_id="" if position is None else position.replica_id,
        position=where,
        state=_worker_state(report),
        sessions_running=report.sessions_running,
        sessions_waiting=report.sessions_waiting,
        kv_percent=100 * used / max(1, report.blocks_total),
        tokens_generated=report.tokens_generated,
    )


def _worker_state(report: WorkerReport) -> str:
    position = report.position
    if position is not None and position.is_broken:
        return "broken"
    if report.is_draining:
        return "leaving"
    if position is None:
        return "serving" if report.is_serving else "spare"
    return "lead" if report.is_serving else "member"


def _replicas(workers: Sequence[WorkerReport]) -> tuple[Replica, ...]:
    members: dict[str, list[WorkerReport]] = {}
    for report in workers:
        if report.position is not None:
            members.setdefault(report.position.replica_id, []).append(report)
        elif report.is_serving:
            members.setdefault(report.worker_id, []).append(report)
    return tuple(_replica(replica_id, members[replica_id]) for replica_id in sorted(members))


def _replica(replica_id: str, members: Sequence[WorkerReport]) -> Replica:
    leads = [report for report in members if report.is_serving]
    position = members[0].position
    is_broken = any(r.position is not None and r.position.is_broken for r in members)
    state = "broken" if is_broken else "serving" if leads else "not serving"
    return Replica(
        replica_id=replica_id,
        alias=members[0].alias,
        stages=1 if position is None else position.stages,
        shards=1 if position is None else position.shards,
        workers=len(members),
        state=state,
        sessions_running=sum(report.sessions_running for report in leads),
        sessions_waiting=sum(report.sessions_waiting for report in leads),
        step_ms=max((report.step_ms_recent for report in leads), default=0.0),
    )


def _totals(
    heard: Heard,
    workers: Sequence[WorkerReport],
    nodes: Sequence[Node],
    replicas: Sequence[Replica],
) -> Totals:
    spot = sum(node.market == Market.SPOT.value for node in nodes)
    return Totals(
        nodes=len(nodes),
        nodes_spot=spot,
        nodes_on_demand=len(nodes) - spot,
        nodes_leaving=sum(node.seconds_left is not None for node in nodes),
        gpus=len(workers),
        replicas_serving=sum(replica.state == "serving" for replica in replicas),
        routers=len(heard.routers()),
        gateways=len(heard.gateways()),
        sessions_running=sum(report.sessions_running for report in workers),
        sessions_waiting=sum(report.sessions_waiting for report in workers)
        + sum(report.sessions_waiting for report in heard.routers()),
        tokens_generated=sum(report.tokens_generated for report in workers),
    )


# ---------------------------------------------------------------------- notices and hand-overs


def _notice(heard: HeardNotice, *, now_ns: int) -> NoticeShown:
    left_ns = heard.left_ns(now_ns=now_ns)
    return NoticeShown(
        node_id=heard.notice.node_id,
        notice_id=heard.notice.notice_id,
        kind=heard.notice.kind.value,
        source=heard.notice.source,
        seconds_left=None if left_ns is None else max(0, left_ns // NS_PER_S),
    )


def _plan(heard: Heard, workers: Sequence[WorkerReport]) -> Plan:
    leading = [report for report in heard.planners() if report.is_leader]
    owning = [report for report in heard.migrators() if report.is_owner]
    newest = max(heard.placements, key=lambda p: p.planned_at_unix_ns, default=None)
    return Plan(
        plan_revision=max((report.plan_revision for report in leading), default=0),
        plan_revision_reached=max((r.plan_revision_reached for r in owning), default=0),
        policy=", ".join(sorted({report.policy for report in leading})),
        reason="" if newest is None else newest.reason,
        why_no_plan="; ".join(report.why_no_plan for report in leading if report.why_no_plan),
        handovers_done=sum(report.handovers_done for report in owning),
        handovers_abandoned=sum(report.handovers_abandoned for report in owning),
        kv_bytes_moved=sum(report.kv_bytes_moved for report in owning),
        weight_bytes_moved=sum(report.weight_bytes_moved for report in owning),
        tokens_recomputed=sum(report.tokens_recomputed for report in workers),
    )


def _migrations(heard: Heard, *, now_unix_ns: int) -> tuple[Migration, ...]:
    """Return those under way, then those that ended last, the newest first."""
    shown = []
    for record in heard.handovers:
        under_way = [handover.story for handover in record.under_way]
        ended = list(reversed(record.ended))[:MIGRATIONS_ENDED_SHOWN]
        shown += [_migration(story, is_over=False, now_unix_ns=now_unix_ns) for story in under_way]
        shown += [_migration(story, is_over=True, now_unix_ns=now_unix_ns) for story in ended]
    return tuple(sorted(shown, key=lambda migration: migration.is_over))


def _migration(story: HandoverStory, *, is_over: bool, now_unix_ns: int) -> Migration:
    totals: HandoverTotals = story.totals
    entered_at_ns = story.moments[-1].entered_at_unix_ns
    return Migration(
        handover_id=story.handover_id,
        state=story.state.value,
        policy=story.policy.value,
        is_over=is_over,
        source_replica_ids=story.source_replica_ids,
        target_replica_ids=story.target_replica_ids,
        kv_bytes_moved=totals.kv_bytes_moved,
        kv_bytes_planned=totals.kv_bytes_planned,
        weight_bytes_from_peers=totals.weight_bytes_from_peers,
        weight_bytes_from_disk=totals.weight_bytes_from_disk,
        sessions_released=totals.sessions_released,
        stall_ms=milliseconds(story.stall_ns),
        age_s=max(0, (now_unix_ns - entered_at_ns) // NS_PER_S),
    )


# ---------------------------------------------------------------------- requests and batches


def _online(routers: Sequence[RouterReport]) -> Online:
    ended = sum(report.online_ended for report in routers)
    within = sum(report.online_within_slo for report in routers)
    return Online(
        requests_open=sum(report.sessions_open for report in routers),
        requests_accepted=sum(report.sessions_accepted for report in routers),
        requests_rejected=sum(report.requests_rejected for report in routers),
        requests_failed=sum(report.requests_failed for report in routers),
        ttft_ms_p50=_worst(report.ttft_ms_p50 for report in routers),
        ttft_ms_p99=_worst(report.ttft_ms_p99 for report in routers),
        tpot_ms_p50=_worst(report.tpot_ms_p50 for report in routers),
        tpot_ms_p99=_worst(report.tpot_ms_p99 for report in routers),
        ttft_slo_ms=max((report.ttft_slo_ms for report in routers), default=0.0),
        tpot_slo_ms=max((report.tpot_slo_ms for report in routers), default=0.0),
        attainment_percent=100 * within / ended if ended else None,
    )


def _worst(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


def _offline(heard: Heard) -> Offline:
    queues = heard.offline_queues()
    laxities = [report.laxity_s_min for report in queues if report.laxity_s_min is not None]
    return Offline(
        tokens_generated=sum(report.tokens_offline for report in heard.routers()),
        tokens_harvested=sum(report.tokens_harvested for report in queues),
        # These two each queue reports of all queues.
        batches_open=max((report.batches_open for report in queues), default=0),
        lines_waiting=max((report.lines_waiting for report in queues), default=0),
        lines_running=sum(report.lines_running for report in queues),
        lines_completed=sum(report.lines_completed for report in queues),
        lines_failed=sum(report.lines_failed for report in queues),
        lines_expired=sum(report.lines_expired for report in queues),
        laxity_s_min=min(laxities, default=None),
    )


def _batch(record: BatchRecord, *, now_unix_s: int) -> BatchShown:
    counts = record.counts
    ended = counts.completed + counts.failed
    return BatchShown(
        batch_id=record.batch_id,
        alias=record.alias or "",
        status=record.status.value,
        is_paused=record.is_paused,
        lines_total=counts.total,
        lines_completed=counts.completed,
        lines_failed=counts.failed,
        progress_percent=100 * ended / counts.total if counts.total else 0.0,
        deadline_in_s=record.deadline_at_unix_s - now_unix_s,
        warning=record.warning,
    )
