"""The migrator's core: one event in, commands out.

It keeps four promises. Nobody is ordered to do anything that is not in the stored record, so that
whoever takes the record over can go on from it. No replica is activated before the sources that
share its workers stand still. No source is dropped before its sessions are released. What the
placement leaves as it is hears nothing.

The parts: `ownership` (who may write the record), `fleet_view` (who lives and holds what),
`changes` (what separates the fleet from the placement), `handovers`, `conduct` and `orders` (all
hand-overs, one in one state, what it asks of whom), `transitions` (which state follows), `timing`
(when a source has to stop).

Everything is looked at again at every sweep: the placement, the reports and the record are levels,
and a lost edge costs one interval.
"""

from collections.abc import Sequence
from typing import assert_never

from libs.contracts.handover import ShapeFailed, ShapeFailReason, ToMigrator
from libs.contracts.handover_record import HandoverRecord
from libs.contracts.placement import Placement
from libs.contracts.reports import MigratorReport
from libs.kernel.core import SetTimer, TimerFired, require
from libs.kernel.units import milliseconds
from libs.policy.liveness import EchoLiveness
from services.migrator.commands import (
    MigratorCommand,
    PingWorker,
    PublishReport,
    ReadPlacement,
    SendToWorker,
)
from services.migrator.conduct import Conduct
from services.migrator.events import (
    MigratorEvent,
    MigratorReported,
    MigratorStarted,
    PlacementAnnounced,
    PlacementRead,
    PlacementUnavailable,
    RecordConflict,
    RecordRead,
    RecordStored,
    RecordUnavailable,
    WorkerAnswered,
    WorkerReported,
    WorkerUnreachable,
)
from services.migrator.fleet_view import FleetView
from services.migrator.handovers import Handovers
from services.migrator.options import MigratorOptions
from services.migrator.ownership import Ownership, Role
from services.migrator.timing import Timing

REPORT_TIMER = "report"
SWEEP_TIMER = "sweep"


class MigratorCore:
    """Decides everything a migrator does; see the head of this file."""

    def __init__(self, options: MigratorOptions) -> None:
        self._options = options
        self._ownership = Ownership(migrator_id=options.migrator_id, alias=options.alias)
        self._view = FleetView(options)
        self._peers = EchoLiveness(options.liveness)
        self._handovers = Handovers(options, self._view)
        self._placement: Placement | None = None
        self._placement_operations = 0
        self._is_reading_placement = False
        self._is_announced = False
        """A placement was announced since the last read began."""
        self._placement_read_at_ns: int | None = None
        self._record_read_at_ns: int | None = None
        self._owner_id = ""
        self._is_outnumbered = False
        """A worker has obeyed a later owner than the record knows: it has to be claimed anew."""
        self._heard_at_ns = 0
        """When our own echo was heard last, or the record was seen to be ours after a silence."""
        self._echoes = 0
        self._echo_at_ns = 0
        """When the last one was counted."""
        self._echo_beat = -1
        self._beat = 0
        self._now_ns = 0
        self._unix_offset_ns = 0
        self._cause_id = ""
        self._commands: list[MigratorCommand] = []

    @property
    def ownership(self) -> Ownership:
        """The record and our part in it, for tests and metrics; read only."""
        return self._ownership

    @property
    def conducts(self) -> Sequence[Conduct]:
        """The hand-overs under way, for tests and metrics; read only."""
        return self._handovers.conducts

    def handle(self, event: MigratorEvent, *, now_ns: int) -> Sequence[MigratorCommand]:
        """Apply one event and return the commands it brings forth, in order."""
        require(now_ns >= self._now_ns, "time went backwards")
        self._now_ns = now_ns
        self._cause_id = event.cause_id
        self._doubt_after_silence()
        self._apply(event)
        commands, self._commands = self._commands, []
        return commands

    def check_invariants(self) -> None:
        """What must hold between any two events; raises InvariantViolation."""
        self._handovers.check_invariants()
        if self._ownership.role is Role.STANDBY:
            require(not self._handovers.conducts, "a hand-over is conducted by a stand-by")

    def _apply(self, event: MigratorEvent) -> None:
        match event:
            case MigratorStarted():
                self._unix_offset_ns = event.now_unix_ns - self._now_ns
                self._heard_at_ns = self._now_ns
                self._publish_report()
                self._sweep()
            case TimerFired():
                if event.key == REPORT_TIMER:
                    self._publish_report()
                else:
                    self._sweep()
            case WorkerReported():
                if self._view.observe(event.report, now_ns=self._now_ns):
                    self._handovers.worker_restarted(event.report.worker_id)
            case WorkerUnreachable():
                self._view.observe_unreachable(event.worker_id)
            case MigratorReported():
                self._migrator_reported(event)
            case PlacementAnnounced():
                if self._placement is None or event.plan_revision > self._placement.plan_revision:
                    self._is_announced = True
                    self._read_placement()
            case PlacementRead() | PlacementUnavailable():
                self._is_reading_placement = False
                if isinstance(event, PlacementRead) and event.placement is not None:
                    self._take_placement(event.placement)
                if self._is_announced:  # meanwhile
                    self._read_placement()
            case RecordRead() | RecordStored() | RecordConflict() | RecordUnavailable():
                self._record_answered(event)
            case WorkerAnswered():
                self._worker_answered(event.answer)
            case _:
                assert_never(event)

    def _doubt_after_silence(self) -> None:
        """Who has not heard itself for long was cut off, or stood still: it may own nothing now."""
        is_deaf = self._now_ns - self._heard_at_ns > self._options.echo_age_max_ns
        if is_deaf and self._ownership.role in (Role.CLAIMING, Role.OWNER):
            self._ownership.is_doubted = True

    # ------------------------------------------------------------------ time

    def _sweep(self) -> None:
        self._set_timer(SWEEP_TIMER, self._options.sweep_interval_ns)
        if _is_due(self._placement_read_at_ns, self._options.read_interval_ns, self._now_ns):
            self._read_placement()
        self._look_after_record()
        self._advance(may_begin=True)

    def _look_after_record(self) -> None:
        """Read it where it is not known, claim it where nobody alive owns it."""
        ownership = self._ownership
        if ownership.is_busy:
            return
        if ownership.role is Role.OWNER:
            if ownership.is_doubted:
                self._read_record()
            return
        is_due = _is_due(self._record_read_at_ns, self._options.read_interval_ns, self._now_ns)
        if ownership.role is Role.STANDBY and self._is_ownerless() and self._is_settled():
            self._commands.append(ownership.claim(cause_id=self._cause_id))
        elif is_due or ownership.is_doubted:
            self._read_record()

    def _is_ownerless(self) -> bool:
        record = self._ownership.record
        if record is None or record.migrator_id == self._options.migrator_id:
            return True  # a late claim of our own may have been stored after we gave it up
        return not self._peers.is_alive(record.migrator_id)

    def _is_settled(self) -> bool:
        return self._echoes >= self._options.echoes_settled

    def _read_record(self) -> None:
        self._record_read_at_ns = self._now_ns
        self._commands.append(self._ownership.read(cause_id=self._cause_id))

    def _read_placement(self) -> None:
        if self._is_reading_placement:
            return
        self._is_reading_placement = True
        self._is_announced = False
        self._placement_read_at_ns = self._now_ns
        self._placement_operations += 1
        op_id = f"placement-{self._placement_operations}"
        self._commands.append(ReadPlacement(op_id=op_id, cause_id=self._cause_id))

    # ------------------------------------------------------------------ what is heard

    def _migrator_reported(self, event: MigratorReported) -> None:
        report = event.report
        if report.alias != self._options.alias:
            return
        if report.migrator_id != self._options.migrator_id:
            self._peers.observe_peer(report.migrator_id)
        elif report.beat > self._echo_beat:  # a doubled echo must not count twice
            self._echo_beat = report.beat
            self._unix_offset_ns = event.now_unix_ns - self._now_ns
            if not self._ownership.is_doubted:
                self._heard_at_ns = self._now_ns
            self._count_echo()

    def _count_echo(self) -> None:
        """Count it against everybody's silence, unless it is of a report between two intervals."""
        is_early = self._now_ns - self._echo_at_ns < self._options.report_interval_ns // 2
        if self._echoes and is_early:
            return
        self._echoes += 1
        self._echo_at_ns = self._now_ns
        self._peers.observe_echo(now_ns=self._now_ns)
        self._view.observe_echo(now_ns=self._now_ns)
        for worker_id in self._view.suspects():
            self._commands.append(PingWorker(worker_id=worker_id, cause_id=self._cause_id))

    def _take_placement(self, placement: Placement) -> None:
        if placement.alias != self._options.alias:
            return
        if self._placement is None or placement.plan_revision > self._placement.plan_revision:
            self._placement = placement
            self._view.observe_leaving(placement.leaving)
            if self._is_current():
                self._handovers.judge(placement)

    def _record_answered(
        self, event: RecordRead | RecordStored | RecordConflict | RecordUnavailable
    ) -> None:
        ownership = self._ownership
        was_owner = ownership.role is Role.OWNER
        match event:
            case RecordRead():
                ownership.was_read(event.op_id, event.record, event.revision)
                self._heard_at_ns = self._now_ns
            case RecordStored():
                ownership.was_stored(event.op_id, event.revision)
            case RecordConflict():
                ownership.conflicted(event.op_id)
            case RecordUnavailable():
                ownership.unavailable(event.op_id)
        if ownership.role is Role.OWNER and ownership.record is not None:
            if not was_owner:
                self._became_owner(ownership.record)
            elif self._is_outnumbered and isinstance(event, RecordRead):
                self._is_outnumbered = False
                self._commands.append(ownership.claim(cause_id=self._cause_id))
                return
            self._handovers.stored(ownership.record)
            if isinstance(event, RecordStored):
                self._publish_report()
            self._advance()
        elif ownership.role is Role.STANDBY:
            self._handovers.forget()
            self._note_owner()

    def _became_owner(self, record: HandoverRecord) -> None:
        self._handovers.adopt(record)
        if self._placement is not None and self._is_current():
            self._handovers.judge(self._placement)

    def _note_owner(self) -> None:
        """An owner that was never heard is given time to be heard, once."""
        record = self._ownership.record
        if record is not None and record.migrator_id != self._owner_id:
            self._owner_id = record.migrator_id
            self._peers.observe_peer(record.migrator_id)

    def _worker_answered(self, answer: ToMigrator) -> None:
        ownership = self._ownership
        if not ownership.may_speak:
            return
        if isinstance(answer, ShapeFailed) and answer.reason is ShapeFailReason.STALE:
            self._is_outnumbered = True
            ownership.is_doubted = True
        elif self._handovers.answered(answer, self._timing(), ownership.latest):
            self._advance(handover_id=answer.handover_id)

    # ------------------------------------------------------------------ doing

    def _is_current(self) -> bool:
        """Whether the placement that we know is at least the one that the record pursues."""
        record = self._ownership.record
        known = 0 if self._placement is None else self._placement.plan_revision
        return known > 0 and (record is None or known >= record.plan_revision)

    def _advance(self, *, handover_id: str | None = None, may_begin: bool = False) -> None:
        """Give what is due, let hand-overs turn, begin new ones, and store what changed.

        With an id only that hand-over is looked at: it alone was answered.
        """
        if not self._ownership.may_speak or not self._is_settled() or not self._is_current():
            return
        before = self._ownership.latest
        progress = self._handovers.advance(
            before,
            self._timing(),
            cause_id=self._cause_id,
            handover_id=handover_id,
            placement=self._placement if may_begin else None,
        )
        for order, cause_id in progress.orders:
            command = SendToWorker(
                worker_id=order.worker_id, message=order.message, cause_id=cause_id
            )
            self._commands.append(command)
        if progress.record != before:
            self._ownership.want(progress.record, *progress.decisions)
        store = self._ownership.flush(cause_id=self._cause_id)
        if store is not None:
            self._commands.append(store)

    def _timing(self) -> Timing:
        return Timing(
            self._view,
            self._options,
            now_ns=self._now_ns,
            now_unix_ns=self._now_ns + self._unix_offset_ns,
        )

    def _publish_report(self) -> None:
        ownership = self._ownership
        record = ownership.record
        is_owner = ownership.role is Role.OWNER
        first = next(iter(self._handovers.conducts), None)
        report = MigratorReport(
            migrator_id=self._options.migrator_id,
            beat=self._beat,
            process_id=self._options.process_id,
            alias=self._options.alias,
            is_owner=is_owner,
            handover_id="" if first is None else first.handover.handover_id,
            state="" if first is None else first.handover.state,
        )
        if is_owner and record is not None:
            last = next((s for s in reversed(record.ended) if s.stall_ns), None)
            report = report.model_copy(
                update={
                    "plan_revision_reached": record.plan_revision_reached,
                    "handovers_done": record.handovers_done,
                    "handovers_abandoned": record.handovers_abandoned,
                    "weight_bytes_moved": record.weight_bytes_moved,
                    "kv_bytes_moved": record.kv_bytes_moved,
                    "stall_ms_recent": 0.0 if last is None else milliseconds(last.stall_ns),
                }
            )
        self._beat += 1
        self._commands.append(PublishReport(report=report, cause_id=self._cause_id))
        self._set_timer(REPORT_TIMER, self._options.report_interval_ns)

    def _set_timer(self, key: str, after_ns: int) -> None:
        self._commands.append(SetTimer(key=key, after_ns=after_ns, cause_id=self._cause_id))


def _is_due(last_at_ns: int | None, interval_ns: int, now_ns: int) -> bool:
    return last_at_ns is None or now_ns - last_at_ns >= interval_ns
