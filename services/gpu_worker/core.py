"""Decides what one worker does: which session it runs, when the engine steps, what it sends.

Theory of operation. One engine step is in flight at a time, and another as long as the scheduler
has work. What a step brings forth goes to the routers at once, is kept until they have journaled
it, and is sent again when they do not say so; so no lost message loses a token.

The parts, each of which sees the worker from one side:

    serving    routers: sessions start, are acknowledged, end
    stepping   the engine: steps are planned, finish, fail
    shaping    the migrator: positions come and go        copying    KV that leaves with them
    arriving   other workers: KV that comes here          node_life  how long the node will be there
    checkpointing   host memory: copies of offline KV     guarding   other nodes: copies of all KV

A solo worker holds one position from the start, that of the whole model, and is told of no other.
"""

from typing import assert_never

from libs.contracts.handover import PlacedWorker, ReplicaRoster
from libs.contracts.preemption import NoticeWithdrawn, PreemptionNotice
from libs.contracts.reports import WorkerReport
from libs.contracts.sessions import RefuseReason
from libs.engine.scheduler import Scheduler
from libs.engine.scheduling.tally import CoserveTally
from libs.kernel.core import TimerFired, require
from services.gpu_worker.arriving import Arriving
from services.gpu_worker.checkpointing import Checkpointing
from services.gpu_worker.commands import EXIT_DRAINED, WorkerCommand
from services.gpu_worker.copying import Copying
from services.gpu_worker.delivery import Delivery
from services.gpu_worker.events import (
    AcknowledgeReceived,
    BlocksCopied,
    BlocksLoaded,
    BlocksStored,
    DrainRequested,
    EndReceived,
    GroupFormed,
    HostCopyFailed,
    KvCommitted,
    KvDropped,
    KvOffered,
    NoticeReceived,
    PeerEvent,
    PeerLost,
    PeerReported,
    PlanReceived,
    PositionAllocated,
    PositionEvent,
    PositionFreed,
    PositionLoaded,
    PositionWorkFailed,
    ShapeReceived,
    StartReceived,
    StepFailed,
    StepFinished,
    WorkerEvent,
    WorkerStarted,
)
from services.gpu_worker.guarding import Guarding
from services.gpu_worker.inheritance import release_sessions
from services.gpu_worker.options import WorkerOptions
from services.gpu_worker.positions import SOLO_REPLICA_ID, WorkerPosition
from services.gpu_worker.reporting import Reporting
from services.gpu_worker.serving import RESEND_TIMER, Serving
from services.gpu_worker.sessions import SessionTable
from services.gpu_worker.shape_answers import ShapeAnswers
from services.gpu_worker.shaping import Shaping
from services.gpu_worker.state import REPORT_TIMER, WorkerCounters, WorkerState
from services.gpu_worker.stepping import Stepping

DRAIN_TIMER = "drain"
EVACUATION_TIMER = "evacuation"
REPORTS_BEFORE_DRAINED = 2
"""A draining worker stays for as many reports, so that a router which has not heard of it yet gets
a refusal instead of silence."""


class WorkerCore:
    """The state of one worker process; see the module for how it works."""

    def __init__(self, options: WorkerOptions, scheduler: Scheduler | None) -> None:
        """A solo worker comes with the scheduler of its engine, a planned one without."""
        require(options.is_planned == (scheduler is None), "a planned worker starts empty")
        sessions = SessionTable(ended_epochs_max=options.ended_epochs_max)
        self._state = WorkerState(
            options=options,
            sessions=sessions,
            delivery=Delivery(options, sessions),
            reporting=Reporting(options),
            tally=CoserveTally() if scheduler is None else scheduler.tally,
        )
        self._serving = Serving(self._state)
        self._stepping = Stepping(self._state)
        self._answers = ShapeAnswers(self._state)
        self._copying = Copying(self._state, self._answers)
        self._shaping = Shaping(self._state, self._answers, self._copying)
        self._arriving = Arriving(self._state)
        self._checkpointing = Checkpointing(self._state)
        self._guarding = Guarding(self._state)
        self._reports_draining = 0
        if scheduler is not None:
            position = _solo_position(options, scheduler)
            self._state.positions.stage(position)
            self._state.positions.activate(position)

    @property
    def counters(self) -> WorkerCounters:
        """What happened since the start, for metrics."""
        return self._state.counters

    @property
    def guarding(self) -> Guarding:
        """The copies against death, to look at."""
        return self._guarding

    @property
    def checkpointing(self) -> Checkpointing:
        """The checkpoints of offline KV, to look at."""
        return self._checkpointing

    @property
    def tally(self) -> CoserveTally:
        """What serving online and offline sessions together came to, for metrics."""
        return self._state.tally

    @property
    def tokens_resent(self) -> int:
        """Tokens sent again since the start, for metrics."""
        return self._state.delivery.tokens_resent

    @property
    def sessions_held(self) -> int:
        """Sessions running, waiting, or finished and not acknowledged."""
        return len(self._state.sessions)

    @property
    def is_draining(self) -> bool:
        """Whether new sessions are refused because the process or its node is about to end."""
        return self._state.is_refusing

    @property
    def report_latest(self) -> WorkerReport | None:
        """The report published last, for metrics."""
        return self._state.reporting.latest

    def position_of(self, replica_id: str) -> WorkerPosition | None:
        """Return the position that this worker holds in the replica, to look at."""
        return self._state.positions.find(replica_id)

    def handle(self, event: WorkerEvent, *, now_ns: int) -> list[WorkerCommand]:
        """Apply one event. After StopProcess nothing follows any more."""
        state = self._state
        if state.is_stopped:
            return []
        state.now_ns = now_ns
        state.cause_id = event.cause_id
        state.commands = []
        self._apply(event)
        if not state.is_stopped:
            self._copying.advance()
            self._checkpointing.advance()
            self._guarding.advance()
            self._stepping.run_next_step()
            self._stepping.yield_step_if_late()
            self._serving.arm_resend()
        return state.commands

    def check_invariants(self) -> None:
        """Raise InvariantViolation if sessions, positions, engine and timers contradict."""
        state = self._state
        state.sessions.check_invariants()
        state.positions.check_invariants()
        self._copying.check_invariants()
        self._checkpointing.check_invariants()
        if state.is_stopped:
            return
        require(len(state.sessions) <= state.options.sessions_max, "too many sessions are held")
        for session in state.sessions:
            require(
                session.scheduler.knows(session.sequence_id) == (session.finish_reason is None),
                f"{session.sequence_id} is known to the engine exactly while it runs",
            )
            require(
                session.resend_at_ns is None or self._serving.is_resend_armed,
                f"{session.sequence_id} waits for a timer that is not set",
            )
        self._stepping.check_invariants()

    def _apply(self, event: WorkerEvent) -> None:
        match event:
            case WorkerStarted():
                self._state.report()
            case StartReceived(message=message):
                self._serving.start(message)
            case AcknowledgeReceived(message=message):
                self._serving.acknowledge(message)
            case EndReceived(message=message):
                self._serving.end(message)
            case StepFinished():
                self._checkpointing.step_finished(event)
                self._stepping.step_finished(event)
            case StepFailed():
                self._stepping.step_failed(event)
            case ShapeReceived(message=message):
                self._shaping.receive(message)
            case PeerReported():
                self._guarding.peer_reported(event)
            case NoticeReceived(message=message):
                self._notice(message)
            case TimerFired(key=key):
                self._timer_fired(key)
            case DrainRequested():
                self._drain()
            case PlanReceived() | PeerLost() | KvOffered() | KvCommitted() | KvDropped():
                self._apply_peers(event)
            case BlocksStored() | BlocksLoaded() | HostCopyFailed():
                self._checkpointing.copy_ended(event)
            case _:
                self._apply_outcome(event)

    def _apply_outcome(self, event: PositionEvent) -> None:
        match event:
            case PositionAllocated():
                self._shaping.allocated(event)
            case PositionLoaded():
                self._shaping.loaded(event)
            case GroupFormed():
                self._shaping.formed(event)
            case BlocksCopied() if self._guarding.owns(event.op_id):
                self._guarding.copied(event)
            case BlocksCopied():
                self._copying.copied(event)
            case PositionFreed():
                self._shaping.freed(event)
            case PositionWorkFailed() if self._guarding.owns(event.op_id):
                self._guarding.copy_failed()
            case PositionWorkFailed():
                if not self._copying.copy_failed(event):
                    self._shaping.failed(event)
            case _:
                assert_never(event)

    def _apply_peers(self, event: PeerEvent) -> None:
        match event:
            case PlanReceived():
                self._stepping.plan_received(event)
            case PeerLost():
                self._stepping.peer_lost(event)
            case KvOffered():
                self._arriving.offered(event)
            case KvCommitted():
                self._arriving.committed(event)
            case KvDropped():
                self._arriving.dropped(event)
            case _:
                assert_never(event)

    def _timer_fired(self, key: str) -> None:
        if key == REPORT_TIMER:
            self._state.report()
            self._reports_draining += self._state.is_draining
            self._stop_if_drained()
        elif key == RESEND_TIMER:
            self._serving.send_overdue()
        elif key == DRAIN_TIMER and self._state.is_draining:
            self._end_drain()
        elif key == EVACUATION_TIMER:
            self._evacuate_if_due()

    # ------------------------------------------------------------------ the end of the node

    def _notice(self, message: PreemptionNotice | NoticeWithdrawn) -> None:
        """Say at once how long the node will be there, and be gone from it in time."""
        state, life = self._state, self._state.node_life
        if message.node_id != state.options.node_id:
            state.counters.stale_dropped += 1
            return
        before = (life.is_leaving, life.ends_at_ns)
        if isinstance(message, PreemptionNotice):
            life.take(message, now_ns=state.now_ns)
        else:
            life.withdraw(message)
        if (life.is_leaving, life.ends_at_ns) != before:
            self._evacuate_if_due()
            state.report()

    def _evacuate_if_due(self) -> None:
        """Send away what is here when the grace is nearly over.

        Nobody moves a solo worker's sessions, so it takes nothing new from the notice on.
        """
        state, life = self._state, self._state.node_life
        grace_left_ns = life.grace_left_ns(now_ns=state.now_ns)
        is_due = grace_left_ns is not None and grace_left_ns <= state.options.grace_reserve_ns
        life.is_evacuating = is_due or (life.is_leaving and not state.options.is_planned)
        if is_due:
            for position in state.positions:
                release_sessions(state, position, "the node ends")
            state.report()
        elif grace_left_ns is not None:
            state.set_timer(EVACUATION_TIMER, grace_left_ns - state.options.grace_reserve_ns)

    # ------------------------------------------------------------------ the end of the process

    def _drain(self) -> None:
        state = self._state
        if state.is_draining:
            self._end_drain()
            return
        state.is_draining = True
        state.report()
        state.set_timer(DRAIN_TIMER, state.options.drain_ns_max)

    def _stop_if_drained(self) -> None:
        """End once nothing here is of use to anybody: no session, and no part of a replica."""
        state = self._state
        is_needed = len(state.sessions) > 0 or (state.options.is_planned and any(state.positions))
        if self._reports_draining >= REPORTS_BEFORE_DRAINED and not is_needed:
            state.stop(EXIT_DRAINED, "drained: every session was delivered")

    def _end_drain(self) -> None:
        state = self._state
        sessions_left = len(state.sessions)
        for session in state.sessions:
            state.send_away(session, RefuseReason.DRAINING, "the worker ends")
        state.stop(EXIT_DRAINED, f"drained: {sessions_left} sessions go on elsewhere")


def _solo_position(options: WorkerOptions, scheduler: Scheduler) -> WorkerPosition:
    itself = PlacedWorker(worker_id=options.worker_id, peer_address="", stage=0, shard=0)
    roster = ReplicaRoster(
        replica_id=SOLO_REPLICA_ID, replica_epoch=1, stages=1, shards=1, workers=(itself,)
    )
    return WorkerPosition(
        roster=roster,
        rank=0,
        batch_sequences_max=scheduler.options.sequences_max,
        is_allocated=True,
        is_loaded=True,
        is_formed=True,
        kv_blocks=scheduler.options.blocks_total,
        host_room=options.checkpoints.room,
        scheduler=scheduler,
    )
