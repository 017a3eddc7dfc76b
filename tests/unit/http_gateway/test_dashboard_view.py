"""What the dashboard shows, from what it was told."""

import json
from dataclasses import asdict
from typing import Any

import pytest

from libs.contracts.batches import BatchCounts, BatchRecord, BatchStatus
from libs.contracts.handover_record import (
    HandoverMoment,
    HandoverRecord,
    HandoverState,
    HandoverStory,
    HandoverTotals,
)
from libs.contracts.placement import Placement, Policy
from libs.contracts.preemption import NoticeKind, NoticeWithdrawn, PreemptionNotice
from libs.contracts.reports import (
    GatewayReport,
    Market,
    MigratorReport,
    OfflineQueueReport,
    PlannerReport,
    Report,
    ReportedPosition,
    RouterReport,
    WorkerReport,
)
from libs.kernel.units import NS_PER_S
from services.http_gateway.dashboard.cost import CostMeter, Prices
from services.http_gateway.dashboard.heard import ECHOES_MISSED_MAX
from services.http_gateway.dashboard.history import SAMPLES_MAX, TokenRates
from services.http_gateway.dashboard.snapshot import Snapshot
from services.http_gateway.dashboard.view import DashboardView

PRICES = Prices(spot_usd=1.0, on_demand_usd=4.0)
UNIX_NS = 1_800_000_000 * NS_PER_S


class Page:
    """A dashboard under a clock that the test moves."""

    def __init__(self) -> None:
        self.view = DashboardView(gateway_id="gateway-1", prices=PRICES)
        self.now_ns = 10 * NS_PER_S

    def hear(self, *reports: Report) -> None:
        for report in reports:
            self.view.heard.take_report(report, now_ns=self.now_ns)

    def hear_echo(self, times: int = 1) -> None:
        for _ in range(times):
            self.hear(
                GatewayReport(
                    gateway_id="gateway-1",
                    beat=0,
                    process_id=1,
                    http_url="http://x",
                    streams_open=0,
                )
            )

    def look(self, *, after_s: float = 0) -> Snapshot:
        self.now_ns += round(after_s * NS_PER_S)
        now = {"now_ns": self.now_ns, "now_unix_ns": UNIX_NS + self.now_ns}
        return self.view.snapshot(self.view.tick(**now), **now)


@pytest.fixture
def page() -> Page:
    return Page()


def a_worker(worker_id: str, **changes: Any) -> WorkerReport:
    fields: dict[str, Any] = {
        "beat": 0,
        "alias": "tide",
        "process_id": 1,
        "context_tokens_max": 100,
        "vocabulary_size": 100,
        "block_tokens": 4,
        "blocks_total": 40,
        "blocks_free": 30,
        "sessions_running": 2,
        "sessions_waiting": 1,
        "tokens_waiting": 0,
        "tokens_generated": 100,
        "steps": 10,
        "step_ms_recent": 5.0,
        "node_id": "node-1",
        "zone": "zone-a",
        "market": Market.SPOT,
    }
    return WorkerReport(worker_id=worker_id, **{**fields, **changes})


def a_router(router_id: str, **changes: Any) -> RouterReport:
    fields = {"beat": 0, "journal_id": "j", "process_id": 1}
    return RouterReport(
        router_id=router_id, **{**fields, "sessions_open": 0, "sessions_accepted": 0, **changes}
    )


def at(stage: int, *, replica_id: str = "replica-1", is_broken: bool = False) -> ReportedPosition:
    return ReportedPosition(
        replica_id=replica_id,
        replica_epoch=1,
        stages=2,
        shards=1,
        stage=stage,
        shard=0,
        is_broken=is_broken,
    )


def a_notice(node_id: str, grace_s: int | None, **changes: Any) -> PreemptionNotice:
    fields: dict[str, Any] = {
        "notice_id": f"notice-of-{node_id}",
        "kind": NoticeKind.PREEMPTION,
        "source": "aws",
        "observed_at_unix_ns": UNIX_NS,
        "grace_ns": None if grace_s is None else grace_s * NS_PER_S,
    }
    return PreemptionNotice(node_id=node_id, **{**fields, **changes})


def test_nodes_stand_in_their_zones_with_their_gpus(page: Page) -> None:
    page.hear(
        a_worker("w2", node_id="node-2", zone="zone-b", market=Market.ON_DEMAND),
        a_worker("w1", position=at(0), is_serving=False),
        a_worker("w3", position=at(1)),
        a_worker("w4", node_id=None, zone=None),
    )
    snapshot = page.look()
    assert [zone.zone for zone in snapshot.zones] == ["no zone", "zone-a", "zone-b"]
    [node] = snapshot.zones[1].nodes
    assert [(gpu.worker_id, gpu.state) for gpu in node.gpus] == [("w1", "member"), ("w3", "lead")]
    assert node.gpus[0].position == "stage 1 of 2, shard 1 of 1"
    assert node.gpus[0].kv_percent == 25.0
    totals = snapshot.totals
    assert (totals.nodes, totals.nodes_spot, totals.nodes_on_demand, totals.gpus) == (3, 2, 1, 4)
    assert totals.tokens_generated == 400


def test_a_replica_counts_its_leads_sessions_once(page: Page) -> None:
    page.hear(
        a_worker("w1", position=at(0), is_serving=False, sessions_running=0),
        a_worker("w2", position=at(1), sessions_running=7),
    )
    [replica] = page.look().replicas
    assert (replica.stages, replica.shards, replica.workers) == (2, 1, 2)
    assert (replica.state, replica.sessions_running) == ("serving", 7)
    page.hear(a_worker("w1", position=at(0, is_broken=True), is_serving=False))
    assert page.look().replicas[0].state == "broken"


def test_who_is_silent_for_four_echoes_is_gone_and_not_before(page: Page) -> None:
    page.hear(a_worker("w1"))
    page.hear_echo(ECHOES_MISSED_MAX - 1)
    assert page.look().totals.gpus == 1
    page.hear_echo()
    assert page.look().totals.gpus == 0


def test_a_broker_that_is_away_silences_nobody_and_is_said_to_be_away(page: Page) -> None:
    page.hear(a_worker("w1"))
    page.hear_echo()
    assert page.look().is_broker_heard
    snapshot = page.look(after_s=60)
    assert not snapshot.is_broker_heard
    assert snapshot.totals.gpus == 1


def test_a_notice_counts_down_and_goes_when_it_is_withdrawn(page: Page) -> None:
    page.hear(a_worker("w1"))
    heard = page.view.heard
    heard.take_notice(a_notice("node-1", 30), now_ns=page.now_ns)
    heard.take_notice(a_notice("node-9", None), now_ns=page.now_ns)
    snapshot = page.look(after_s=4.5)
    assert [(n.node_id, n.seconds_left) for n in snapshot.notices] == [
        ("node-1", 25),
        ("node-9", None),
    ]
    assert snapshot.zones[0].nodes[0].seconds_left == 25
    withdrawn = NoticeWithdrawn(
        notice_id="notice-of-node-1", node_id="node-1", kind=NoticeKind.PREEMPTION, source="aws"
    )
    heard.take_notice(withdrawn, now_ns=page.now_ns)
    assert [n.node_id for n in page.look().notices] == ["node-9"]
    assert page.look(after_s=61).notices == ()


def test_a_nodes_own_clock_outweighs_what_was_announced(page: Page) -> None:
    page.hear(a_worker("w1", grace_left_ms=12_900))
    page.view.heard.take_notice(a_notice("node-1", 30), now_ns=page.now_ns)
    assert page.look().zones[0].nodes[0].seconds_left == 12


def test_latencies_are_the_worst_routers_and_attainment_is_over_all(page: Page) -> None:
    page.hear(
        a_router("r1", ttft_ms_p99=100.0, online_ended=3, online_within_slo=3, ttft_slo_ms=1500),
        a_router("r2", ttft_ms_p99=900.0, online_ended=1, online_within_slo=0, ttft_slo_ms=1500),
        a_router("r3"),
    )
    online = page.look().online
    assert (online.ttft_ms_p99, online.tpot_ms_p99, online.ttft_slo_ms) == (900.0, None, 1500)
    assert online.attainment_percent == 75.0


def test_without_an_ended_request_there_is_no_attainment(page: Page) -> None:
    page.hear(a_router("r1"))
    assert page.look().online.attainment_percent is None


def test_what_every_queue_says_of_all_is_not_added_up(page: Page) -> None:
    for queue_id in ("q1", "q2"):
        page.hear(
            OfflineQueueReport(
                queue_id=queue_id,
                beat=0,
                process_id=1,
                batches_open=3,
                lines_waiting=50,
                lines_running=4,
                tokens_harvested=1000,
                laxity_s_min=30.0 if queue_id == "q1" else -5.0,
            )
        )
    offline = page.look().offline
    assert (offline.batches_open, offline.lines_waiting) == (3, 50)
    assert (offline.lines_running, offline.tokens_harvested) == (8, 2000)
    assert offline.laxity_s_min == -5.0


def test_hand_overs_under_way_come_first_and_tell_how_far_they_are(page: Page) -> None:
    now_unix_ns = UNIX_NS + page.now_ns
    moment = HandoverMoment(
        state=HandoverState.COPYING, entered_at_unix_ns=now_unix_ns - 3 * NS_PER_S
    )
    totals = HandoverTotals(kv_bytes_planned=100, kv_bytes_moved=40)
    story = HandoverStory(
        handover_id="handover-2",
        policy=Policy.TIDESERVE,
        plan_revision=2,
        moments=(moment,),
        totals=totals,
    )
    done = HandoverMoment(state=HandoverState.DONE, entered_at_unix_ns=now_unix_ns)
    ended = story.model_copy(update={"handover_id": "handover-1", "moments": (done,)})
    record = HandoverRecord(
        alias="tide",
        migrator_id="m",
        handover_epoch=1,
        under_way=({"story": story},),  # type: ignore[arg-type]
        ended=(ended,),
    )
    page.view.heard.handovers = (record,)
    first, second = page.look().migrations
    assert (first.handover_id, first.is_over, first.age_s) == ("handover-2", False, 3)
    assert (first.kv_bytes_moved, first.kv_bytes_planned) == (40, 100)
    assert (second.handover_id, second.is_over) == ("handover-1", True)


def test_the_plan_is_what_the_leader_and_the_owner_say(page: Page) -> None:
    common: dict[str, Any] = {"beat": 0, "process_id": 1, "alias": "tide"}
    page.hear(
        PlannerReport(
            planner_id="p1", is_leader=True, plan_revision=7, policy="tideserve", **common
        ),
        PlannerReport(planner_id="p2", plan_revision=3, **common),
        MigratorReport(migrator_id="m1", is_owner=True, plan_revision_reached=6, **common),
        MigratorReport(migrator_id="m2", plan_revision_reached=9, handovers_done=8, **common),
    )
    placement = Placement(plan_revision=7, alias="tide", policy=Policy.TIDESERVE, reason="a notice")
    page.view.heard.placements = (placement,)
    plan = page.look().plan
    assert (plan.plan_revision, plan.plan_revision_reached, plan.handovers_done) == (7, 6, 0)
    assert (plan.policy, plan.reason) == ("tideserve", "a notice")


def test_a_batch_shows_its_share_and_its_deadline(page: Page) -> None:
    unix_s = (UNIX_NS + page.now_ns) // NS_PER_S
    record = BatchRecord(
        batch_id="batch_00000001",
        input_file_id="file-00000001",
        endpoint="/v1/completions",
        status=BatchStatus.IN_PROGRESS,
        counts=BatchCounts(total=8, completed=5, failed=1),
        deadline_at_unix_s=unix_s + 60,
        created_at_unix_s=unix_s,
    )
    empty = record.model_copy(update={"counts": BatchCounts()})
    page.view.heard.batches = (record, empty)
    shown, unread = page.look().batches
    assert (shown.progress_percent, shown.deadline_in_s) == (75.0, 60)
    assert unread.progress_percent == 0.0


def test_cost_is_the_rate_of_then_times_the_time_since() -> None:
    meter = CostMeter(PRICES)
    hour_ns = 3600 * NS_PER_S
    meter.advance({Market.SPOT: 2, Market.ON_DEMAND: 1}, now_ns=0)
    assert meter.saved_percent is None
    meter.advance({Market.SPOT: 1}, now_ns=hour_ns)
    assert (meter.usd, meter.on_demand_usd) == (6.0, 12.0)
    assert meter.saved_percent == 50.0
    meter.advance({}, now_ns=2 * hour_ns)
    assert (meter.usd, meter.on_demand_usd, meter.usd_per_hour) == (7.0, 16.0, 0)


def test_a_router_that_starts_anew_makes_no_negative_rate() -> None:
    rates = TokenRates()
    first = [a_router("r1", tokens_relayed=100, tokens_offline=40)]
    assert rates.look(first, now_ns=0) == (0.0, 0.0)
    second = [a_router("r1", tokens_relayed=160, tokens_offline=60), a_router("r2")]
    assert rates.look(second, now_ns=2 * NS_PER_S) == (20.0, 10.0)
    restarted = [a_router("r1", tokens_relayed=5), a_router("r2", tokens_relayed=3)]
    assert rates.look(restarted, now_ns=3 * NS_PER_S) == (3.0, 0.0)


def test_the_past_is_bounded_and_a_snapshot_is_json(page: Page) -> None:
    for _ in range(SAMPLES_MAX + 5):
        snapshot = page.look(after_s=1)
    assert len(page.view.history.samples()) == SAMPLES_MAX
    assert page.view.history.samples()[-1] == snapshot.sample
    assert json.loads(json.dumps(asdict(snapshot)))["gateway_id"] == "gateway-1"
