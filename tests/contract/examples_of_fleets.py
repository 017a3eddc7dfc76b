"""Examples of what keeps a fleet in shape: one of every message, as it was at its release."""

from typing import Any

from libs.contracts.handover import (
    ActivateReplica,
    CopyKv,
    DropReplica,
    FormReplica,
    LoadWeights,
    PlacedWorker,
    ReleaseSessions,
    ReplicaRoster,
    ResumeReplica,
    ShapeDone,
    ShapeFailed,
    ShapeFailReason,
    StagePosition,
    StopReplica,
    WeightsFrom,
)
from libs.contracts.handover_record import (
    Handover,
    HandoverMoment,
    HandoverRecord,
    HandoverSource,
    HandoverState,
    HandoverStory,
    HandoverTarget,
    HandoverTotals,
)
from libs.contracts.local_cloud import (
    AddNode,
    CloudDone,
    CloudRefused,
    KillNode,
    PreemptNode,
)
from libs.contracts.placement import (
    CapacityWanted,
    LeavingNode,
    PinnedShape,
    PinRefused,
    PinShape,
    Placement,
    Policy,
    ReplicaPlacement,
    ShapePinned,
)
from libs.contracts.preemption import (
    ConfirmEvacuation,
    NoticeKind,
    NoticeRejectReason,
    NoticeRequestAccepted,
    NoticeRequestRejected,
    NoticeWithdrawn,
    PreemptionNotice,
    RaiseNotice,
    WithdrawNotice,
)
from libs.contracts.reports import (
    GatewayReport,
    Market,
    MigratorReport,
    PlannerReport,
    RouterReport,
    WorkerReport,
)
from libs.contracts.transfers import (
    CarryPieces,
    IntroducePeer,
    OfferTransfer,
    PiecesCorrupted,
    PiecesTaken,
    TransferAccepted,
    TransferRefusal,
    TransferRefused,
)
from libs.contracts.wire import Message

PREEMPTION: tuple[Message, ...] = (
    PreemptionNotice(
        notice_id="aws-1f3870be",
        node_id="node-1",
        kind=NoticeKind.PREEMPTION,
        source="aws",
        deadline_at_unix_ns=1_800_000_120_000_000_000,
        observed_at_unix_ns=1_800_000_000_000_000_000,
        grace_ns=115_000_000_000,
        detail="terminate",
    ),
    NoticeWithdrawn(
        notice_id="aws-1f3870be",
        node_id="node-1",
        kind=NoticeKind.PREEMPTION,
        source="aws",
        detail="the source no longer gives it",
    ),
    RaiseNotice(
        notice_id="drill-1",
        node_id="node-1",
        kind=NoticeKind.MAINTENANCE,
        grace_ns=30_000_000_000,
        detail="a drill",
    ),
    WithdrawNotice(notice_id="drill-1", node_id="node-1"),
    ConfirmEvacuation(notice_id="drill-1", node_id="node-1"),
    NoticeRequestAccepted(notice_id="drill-1", node_id="node-1"),
    NoticeRequestRejected(
        reason=NoticeRejectReason.UNKNOWN_NOTICE, message="no notice drill-1 holds"
    ),
)
REPORTS: tuple[Message, ...] = (
    WorkerReport(
        worker_id="worker-1",
        beat=12,
        alias="tide-tiny",
        process_id=4242,
        is_draining=True,
        context_tokens_max=2048,
        vocabulary_size=2048,
        block_tokens=16,
        blocks_total=512,
        blocks_free=500,
        sessions_running=2,
        sessions_waiting=1,
        tokens_waiting=30,
        tokens_generated=999,
        steps=120,
        step_ms_recent=3.5,
        prefix_hashes=(2**63 + 1,),
    ),
    RouterReport(
        router_id="router-1",
        beat=12,
        journal_id="router-1-a",
        process_id=4243,
        sessions_open=2,
        sessions_accepted=9,
        sessions_adopted=1,
        sessions_resumed=1,
        tokens_relayed=999,
        stale_dropped=1,
    ),
    GatewayReport(
        gateway_id="gateway-1",
        beat=12,
        process_id=4244,
        http_url="http://127.0.0.1:8000",
        streams_open=2,
    ),
    PlannerReport(
        planner_id="planner-1",
        beat=12,
        process_id=4245,
        alias="tide-tiny",
        is_leader=True,
        policy="tideserve",
        plan_revision=7,
        nodes_live=4,
        nodes_leaving=1,
        requests_per_s=0.35,
        plans_made=3,
        plan_ms_recent=1.5,
    ),
    MigratorReport(
        migrator_id="migrator-1",
        beat=12,
        process_id=4246,
        alias="tide-tiny",
        is_owner=True,
        handover_id="handover-7",
        state="copying",
        plan_revision_reached=6,
        handovers_done=5,
        weight_bytes_moved=4096,
        kv_bytes_moved=8192,
        stall_ms_recent=12.5,
    ),
)
PLACEMENT: tuple[Message, ...] = (
    Placement(
        plan_revision=7,
        alias="tide-tiny",
        policy=Policy.TIDESERVE,
        replicas=(
            ReplicaPlacement(
                replica_id="replica-7-0",
                replica_epoch=7,
                stages=2,
                shards=1,
                worker_ids=("worker-1", "worker-2"),
                inherits=("replica-3-0",),
            ),
        ),
        spare_worker_ids=("worker-3",),
        leaving=(
            LeavingNode(
                node_id="node-4",
                worker_ids=("worker-4",),
                deadline_at_unix_ns=1_800_000_000_000_000_000,
            ),
        ),
        batch_sequences_max=8,
        reason="node-4 is to end in 30 s",
        planned_at_unix_ns=1_799_999_970_000_000_000,
        planner_id="planner-1",
        cause_id="notice-9",
    ),
    CapacityWanted(
        alias="tide-tiny",
        plan_revision=7,
        spot_nodes=4,
        on_demand_nodes=1,
        zones_preferred=("us-east-1a",),
        nodes_to_release=("node-5",),
        reason="one spare",
    ),
    PinShape(shape=PinnedShape(stages=2, shards=1)),
    ShapePinned(plan_revision=7),
    PinRefused(message="3 shards do not divide 4 attention heads"),
)
ROSTER = ReplicaRoster(
    replica_id="replica-7-0",
    replica_epoch=7,
    stages=1,
    shards=1,
    workers=(
        PlacedWorker(
            worker_id="worker-1",
            peer_address="tcp://127.0.0.1:4711",
            stage=0,
            shard=0,
            is_leaving=True,
        ),
    ),
)
COMMAND: dict[str, Any] = {
    "handover_id": "handover-7",
    "handover_epoch": 2,
    "migrator_id": "migrator-1",
    "op_id": "op-12",
    "plan_revision": 7,
}
HANDOVER: tuple[Message, ...] = (
    StagePosition(**COMMAND, replica=ROSTER, batch_sequences_max=8),
    LoadWeights(
        **COMMAND,
        replica_id="replica-7-0",
        weights_from=WeightsFrom.DISK,
        holders=(ROSTER,),
        targets=(ROSTER,),
        layer_order=(1, 0),
    ),
    FormReplica(**COMMAND, replica_id="replica-7-0", rendezvous="127.0.0.1:4712", kv_blocks=512),
    CopyKv(**COMMAND, source=ROSTER, targets=(ROSTER,)),
    StopReplica(
        **COMMAND,
        source=ROSTER,
        targets=(ROSTER,),
        copy_until_unix_ns=1_800_000_000_000_000_000,
    ),
    ResumeReplica(**COMMAND, replica_id="replica-7-0"),
    ActivateReplica(**COMMAND, replica_id="replica-7-0"),
    ReleaseSessions(**COMMAND, replica_id="replica-3-0", target_worker_ids=("worker-1",)),
    DropReplica(**COMMAND, replica_id="replica-3-0"),
    ShapeDone(
        worker_id="worker-1",
        handover_id="handover-7",
        op_id="op-12",
        rendezvous="127.0.0.1:4712",
        kv_blocks=512,
        bytes_planned=8192,
        bytes_moved=8192,
        blocks_moved=2,
        sessions=1,
        duration_ns=1_000_000,
    ),
    ShapeFailed(
        worker_id="worker-1",
        handover_id="handover-7",
        op_id="op-12",
        reason=ShapeFailReason.PEER_LOST,
        message="worker-2 does not answer",
    ),
)
STORY = HandoverStory(
    handover_id="handover-7",
    policy=Policy.TIDESERVE,
    plan_revision=7,
    cause_id="notice-4",
    source_replica_ids=("replica-3-0",),
    target_replica_ids=("replica-7-0",),
    moments=(
        HandoverMoment(state=HandoverState.STAGING, entered_at_unix_ns=1_800_000_000_000_000_000),
        HandoverMoment(
            state=HandoverState.STOPPING,
            entered_at_unix_ns=1_800_000_001_000_000_000,
            reason="a source ends before its targets could be ready",
        ),
    ),
    totals=HandoverTotals(weight_bytes_planned=8192, kv_bytes_moved=4096, kv_blocks_moved=1),
)
RECORDS: tuple[Message, ...] = (
    HandoverRecord(
        alias="tide-tiny",
        migrator_id="migrator-1",
        handover_epoch=3,
        plan_revision=7,
        plan_revision_reached=6,
        handovers_begun=7,
        handovers_done=5,
        handovers_abandoned=1,
        weight_bytes_moved=1 << 30,
        kv_bytes_moved=1 << 20,
        under_way=(
            Handover(
                story=STORY,
                sources=(HandoverSource(replica=ROSTER),),
                targets=(
                    HandoverTarget(
                        replica=ROSTER,
                        inherits=("replica-3-0",),
                        rendezvous="127.0.0.1:4712",
                        kv_blocks=512,
                        batch_sequences_max=32,
                    ),
                ),
            ),
        ),
        ended=(STORY,),
    ),
)
LOCAL_CLOUD: tuple[Message, ...] = (
    AddNode(operation_id="operation-1", market=Market.SPOT, zone="us-east-1a"),
    PreemptNode(operation_id="operation-2", node_id="node-4", grace_ms=5_000),
    KillNode(operation_id="operation-3", node_id="node-4"),
    CloudDone(operation_id="operation-1", node_id="node-5"),
    CloudRefused(operation_id="operation-3", message="there is no node-4"),
)
TRANSFERS: tuple[Message, ...] = (
    IntroducePeer(peer_id="worker-1", purpose="kv"),
    OfferTransfer(ticket_id="plan-7/worker-1/worker-2", replica_epoch=3, pieces=2),
    CarryPieces(buffer_number=1, checksum=2**64 - 1, piece_indices=(4, 2**32 - 1)),
    TransferAccepted(ticket_id="plan-7/worker-1/worker-2"),
    TransferRefused(reason=TransferRefusal.STALE_EPOCH),
    PiecesTaken(buffer_number=1),
    PiecesCorrupted(buffer_number=1),
)
