"""One example of every message that crosses a process, as it was when its tag was released."""

from typing import Any

import pytest

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
from libs.contracts.journal import (
    JournalClosed,
    JournalTakenOver,
    SessionDispatched,
    SessionFailed,
    SessionOpened,
)
from libs.contracts.local_cloud import (
    AddNode,
    CloudDone,
    CloudRefused,
    KillNode,
    PreemptNode,
)
from libs.contracts.online import (
    CancelRequest,
    ChatMessage,
    FailReason,
    FinishReason,
    RejectReason,
    RequestAccepted,
    RequestFailed,
    RequestFinished,
    RequestRejected,
    SamplingParameters,
    SubmitRequest,
    TokensGenerated,
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
from libs.contracts.sessions import (
    AcknowledgeTokens,
    EndSession,
    RefuseReason,
    SessionRefused,
    SessionSpec,
    SessionStarted,
    StartSession,
    TokenReceipt,
)
from libs.contracts.text import (
    DetokenizeIds,
    IdsDetokenized,
    TextRejected,
    TextTokenized,
    TokenizeText,
)
from libs.contracts.token_step import SessionTokens, TokenStep
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
from libs.contracts.wire import Encoding, Message
from tests.contract.peer_examples import PEERS

SAMPLING = SamplingParameters(temperature=0.7, top_p=0.9, top_k=40, seed=-7)
SPEC = SessionSpec(
    request_id="request-1",
    alias="tide-tiny",
    prompt_token_ids=(1, 300, 70000),
    max_tokens=64,
    sampling=SAMPLING,
    stop=("\n\n", "Ende"),
    ignore_eos=True,
    priority=3,
)
TOKENS = SessionTokens(
    request_id="request-1",
    session_epoch=2,
    first_index=5,
    token_ids=(17, 4),
    texts=("flood", " tide ≈"),
    finish_reason=FinishReason.STOP,
)

ONLINE: tuple[Message, ...] = (
    SubmitRequest(
        request_id="request-1",
        messages=(ChatMessage(role="user", content="What does str.split do?"),),
        max_tokens=64,
        sampling=SAMPLING,
        stop=("\n\n",),
        ignore_eos=True,
        priority=3,
        expires_after_ms=30_000,
        tokens_received=4,
    ),
    RequestAccepted(request_id="request-1", router_id="router-1", prompt_tokens=3),
    RequestRejected(
        request_id="request-1",
        reason=RejectReason.OVERLOADED,
        message="256 requests are open",
        parameter="prompt",
        retry_after_ms=500,
    ),
    TokensGenerated(
        request_id="request-1", first_index=5, token_ids=(17, 4), texts=("flood", " tide ≈")
    ),
    RequestFinished(
        request_id="request-1",
        finish_reason=FinishReason.LENGTH,
        prompt_tokens=3,
        completion_tokens=64,
    ),
    RequestFailed(request_id="request-1", reason=FailReason.EXPIRED, message="after 30 s"),
    CancelRequest(request_id="request-1"),
)
TEXT: tuple[Message, ...] = (
    TokenizeText(
        messages=(ChatMessage(role="user", content="What does str.split do?"),),
        add_special_tokens=False,
        with_token_texts=True,
    ),
    DetokenizeIds(token_ids=(1, 300, 70000)),
    TextTokenized(token_ids=(1, 300), token_texts=("<s>", "\u2581tide")),
    IdsDetokenized(text="tide ≈"),
    TextRejected(reason=RejectReason.INVALID, message="no chat template", parameter="messages"),
)
SESSIONS: tuple[Message, ...] = (
    StartSession(router_id="router-1", session_epoch=2, spec=SPEC, generated_token_ids=(17,)),
    AcknowledgeTokens(
        router_id="router-1",
        receipts=(
            TokenReceipt(
                request_id="request-1", session_epoch=2, next_index=7, is_resend_wanted=True
            ),
        ),
    ),
    EndSession(request_id="request-1", session_epoch=2),
    SessionStarted(worker_id="worker-1", request_id="request-1", session_epoch=2),
    SessionRefused(
        worker_id="worker-1",
        request_id="request-1",
        session_epoch=2,
        reason=RefuseReason.FULL,
        message="1024 sessions are held",
    ),
)
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
STEP = TokenStep(worker_id="worker-1", step_id=120, entries=(TOKENS,))
BATCH = (
    SessionOpened(
        spec=SPEC,
        reply_to="_INBOX.a.1",
        encoding=Encoding.JSON,
        session_epoch=1,
        worker_id="worker-1",
        expires_at_unix_ns=1_800_000_000_000_000_000,
        generated_token_ids=(17,),
        generated_texts=("flood",),
    ),
    SessionDispatched(request_id="request-1", session_epoch=2, worker_id="worker-2"),
    TOKENS,
    SessionFailed(request_id="request-1", reason=FailReason.WORKERS_DIED, message="three times"),
    JournalTakenOver(by_router_id="router-2", by_journal_id="router-2-a"),
    JournalClosed(by_journal_id="router-2-a"),
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-golden", action="store_true", help="write golden files that lack")


@pytest.fixture(scope="session")
def messages() -> tuple[Message, ...]:
    """An example of each tagged message."""
    return (
        *ONLINE,
        *TEXT,
        *SESSIONS,
        *PREEMPTION,
        *REPORTS,
        *PLACEMENT,
        *HANDOVER,
        *LOCAL_CLOUD,
        *TRANSFERS,
        *PEERS,
    )


@pytest.fixture(scope="session")
def step() -> TokenStep:
    return STEP


@pytest.fixture(scope="session")
def batch() -> tuple[Any, ...]:
    return BATCH
