"""Carries one hand-over through its present state: orders given, repeated, answered, failed.

    entered (not stored) --HandoverStored--> orders given --all answered--> carried out
                                                 |  ^
                       unanswered 300 ms, failed |  | again; a failure for a passing reason gets
                       for a passing reason      +--+ another attempt, under another op_id

What a failure means depends on the order, see `_settle_failure`: it is passed over, costs a source
(its sessions are replayed), or costs a target (the hand-over is given up where it still can be).
Copying KV while the source decodes goes on beside, in rounds, and never fails a hand-over.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from libs.contracts.handover import (
    ActivateReplica,
    CopyKv,
    DropReplica,
    FormReplica,
    LoadWeights,
    ReleaseSessions,
    ResumeReplica,
    ShapeDone,
    ShapeFailed,
    ShapeFailReason,
    StagePosition,
    StopReplica,
    ToMigrator,
)
from libs.contracts.handover_record import (
    Handover,
    HandoverState,
    HandoverTarget,
    HandoverTotals,
)
from libs.contracts.placement import Policy
from services.migrator.options import ANSWER_LIMITS_NS, MigratorOptions
from services.migrator.orders import Order, OrderDesk
from services.migrator.tally import add_answer, add_failure
from services.migrator.transitions import Turn, can_turn

PASSING = frozenset(
    {ShapeFailReason.PEER_LOST, ShapeFailReason.TIMED_OUT, ShapeFailReason.WRONG_STATE}
)
"""May be otherwise the next time."""
GONE = frozenset({ShapeFailReason.UNKNOWN_REPLICA, ShapeFailReason.BROKEN})
"""There is nothing left to be stopped, released or freed."""


@dataclass(slots=True, kw_only=True)
class _Pending:
    """An order, and where it stands."""

    order: Order
    attempt: int = 0
    given_at_ns: int | None = None
    """None: not yet."""
    sent_at_ns: int = 0
    is_settled: bool = False
    done: ShapeDone | None = None


@dataclass(slots=True, kw_only=True)
class _Copying:
    """The rounds of copying in this state, from one source's lead."""

    rounds: int = 0
    blocks_left: int | None = None
    """At the end of the latest round."""
    bytes_left: int = 0
    sessions_finishing: int = 0
    """That end before the source has to stop: it goes on for them."""
    next_at_ns: int = 0
    is_over: bool = False
    """A round failed, or brought nothing: what is left is sent at the stop."""

    def has_copied(self, options: MigratorOptions) -> bool:
        """Whether what is left is little, or grows no less, and nobody is about to end."""
        if self.is_over or self.sessions_finishing:
            return self.is_over
        is_little = self.blocks_left is not None and self.blocks_left <= options.blocks_left_max
        return is_little or self.rounds >= options.copy_rounds_max


@dataclass(slots=True, kw_only=True)
class Conduct:
    """One hand-over under way."""

    handover: Handover
    worker_ids: frozenset[str] = field(init=False)
    """Everybody who takes part; the same from beginning to end."""
    is_stored: bool = False
    """Whether the present state is in the record; nothing is ordered before."""
    is_given_up: bool = False
    """A target is lost, or the placement wants something else."""
    is_failure: bool = False
    """Given up, and not because the placement changed."""
    why: str = ""
    """The reason for the next turn, for people."""
    totals: HandoverTotals = field(default_factory=HandoverTotals)
    """With what this state has cost so far; a successor counts a state from its beginning."""
    lost_worker_ids: set[str] = field(default_factory=set)
    """For membership only."""
    began_at_ns: int | None = None
    """When the first order of this state was given."""
    _pending: dict[str, _Pending] = field(default_factory=dict)
    _copies: dict[str, _Copying] = field(default_factory=dict)
    """By the worker that leads the source."""
    _copy_orders: dict[str, _Pending] = field(default_factory=dict)
    _bytes_left_before: int = 0

    def __post_init__(self) -> None:
        self.worker_ids = self.handover.worker_ids

    # ------------------------------------------------------------------ giving

    def give(self, desk: OrderDesk, *, now_ns: int) -> list[Order]:
        """Return the orders to be sent now: new ones, and again what was not answered in time."""
        if not self.is_stored:
            return []
        if self.began_at_ns is None:
            self.began_at_ns = now_ns
            self._pending = {o.message.op_id: _Pending(order=o) for o in desk.orders()}
        orders = list(self._due(self._pending, desk.options, now_ns=now_ns))
        if self._is_copying():
            self._begin_rounds(desk, now_ns=now_ns)
            orders.extend(self._due(self._copy_orders, desk.options, now_ns=now_ns))
        return orders

    def _due(
        self, pending: dict[str, _Pending], options: MigratorOptions, *, now_ns: int
    ) -> Iterator[Order]:
        unsettled = [entry for entry in pending.values() if not entry.is_settled]
        line = min((entry.order.line for entry in unsettled), default=0)
        for entry in unsettled:
            if entry.order.line > line:
                continue
            if entry.given_at_ns is None:
                entry.given_at_ns = now_ns
            elif now_ns - entry.sent_at_ns < options.repeat_ns:
                continue
            entry.sent_at_ns = now_ns
            yield entry.order

    def _is_copying(self) -> bool:
        policy, state = self.handover.story.policy, self.handover.state
        is_loading = state is HandoverState.LOADING and policy is Policy.TIDESERVE
        return is_loading or state is HandoverState.COPYING

    def _begin_rounds(self, desk: OrderDesk, *, now_ns: int) -> None:
        """Start the next round from every source whose last one is over."""
        number = max((copying.rounds for copying in self._copies.values()), default=0)
        if any(not entry.is_settled for entry in self._copy_orders.values()):
            return
        if any(now_ns < copying.next_at_ns for copying in self._copies.values()):
            return
        self._copy_orders.clear()
        for order in desk.copies(round_number=number):
            copying = self._copies.setdefault(order.worker_id, _Copying())
            if desk.view.is_alive(order.worker_id) and not copying.is_over:
                copying.rounds = number + 1
                self._copy_orders[order.message.op_id] = _Pending(order=order)

    # ------------------------------------------------------------------ answers

    def answered(self, answer: ToMigrator, desk: OrderDesk, *, now_ns: int) -> bool:
        """Take an answer; return whether it was one that was waited for."""
        copy = self._copy_orders.get(answer.op_id)
        if copy is not None and not copy.is_settled:
            self._round_ended(copy, answer, desk.options, now_ns=now_ns)
            return True
        entry = self._pending.get(answer.op_id)
        if entry is None or entry.is_settled or entry.order.worker_id != answer.worker_id:
            return False
        match answer:
            case ShapeDone():
                entry.is_settled = True
                entry.done = answer
                self._count(entry.order, answer)
            case ShapeFailed():
                self._count_failure()
                self._failed(entry, answer.reason, desk)
        return True

    def worker_lost(self, worker_id: str) -> None:
        """Note that a worker died or forgot what it held; once is enough."""
        if worker_id in self.lost_worker_ids:
            return
        self.lost_worker_ids.add(worker_id)
        for entry in list(self._pending.values()):
            if entry.order.worker_id == worker_id and not entry.is_settled:
                entry.is_settled = True
                self._settle_failure(entry, worker_is_lost=True)
        for copy in self._copy_orders.values():
            copy.is_settled = copy.is_settled or copy.order.worker_id == worker_id
        if worker_id in self._copies:
            self._copies[worker_id].is_over = True
        for source in self.handover.sources:
            lead = source.replica.lead
            if lead is not None and lead.worker_id == worker_id:
                self._lose_source(source.replica.replica_id)
        for target in self.handover.targets:
            if any(w.worker_id == worker_id for w in target.replica.workers):
                self._lose_target(target.replica.replica_id, f"{worker_id} is lost")

    def time_out(self, desk: OrderDesk, *, now_ns: int) -> None:
        """Count what a living worker has not answered for too long as failed for good."""
        limit_ns = ANSWER_LIMITS_NS.get(self.handover.state, desk.options.answer_limit_ns)
        for entry in (*self._pending.values(), *self._copy_orders.values()):
            is_late = entry.given_at_ns is not None and now_ns - entry.given_at_ns > limit_ns
            if is_late and not entry.is_settled:
                entry.is_settled = True
                self._count_failure()
                self._settle_failure(entry, worker_is_lost=False)
                if entry.order.message.op_id in self._copy_orders:
                    self._copies[entry.order.worker_id].is_over = True

    def _failed(self, entry: _Pending, reason: ShapeFailReason, desk: OrderDesk) -> None:
        message = entry.order.message
        is_freed = isinstance(message, DropReplica) and reason in GONE
        may_pass = reason in PASSING and not isinstance(message, FormReplica)
        entry.is_settled = True
        if is_freed:
            return
        if may_pass and entry.attempt + 1 < desk.options.attempts_max:
            self._try_again(entry, desk)
            return
        is_gone = isinstance(message, StopReplica | ReleaseSessions) and reason in GONE
        self._settle_failure(entry, worker_is_lost=is_gone, detail=f"{reason}")

    def _try_again(self, entry: _Pending, desk: OrderDesk) -> None:
        attempt = entry.attempt + 1
        for order in desk.orders(attempt=attempt):
            is_same_place = order.replica_id == entry.order.replica_id
            if order.worker_id == entry.order.worker_id and is_same_place:
                # Not given at once: whatever passes needs a moment.
                self._pending[order.message.op_id] = _Pending(
                    order=order,
                    attempt=attempt,
                    given_at_ns=entry.given_at_ns,
                    sent_at_ns=entry.sent_at_ns,
                )

    def _settle_failure(self, entry: _Pending, *, worker_is_lost: bool, detail: str = "") -> None:
        """Decide what it means that this order will never be carried out."""
        order = entry.order
        why = f"{order.worker_id}: {type(order.message).__name__} {detail or 'unanswered'}"
        match order.message:
            case DropReplica() | ResumeReplica() | CopyKv():
                return  # the next look at the fleet finds what is left of it
            case StagePosition() | LoadWeights() | FormReplica() | ActivateReplica():
                self._lose_target(order.replica_id, why)
            case ReleaseSessions():
                self._lose_source(order.replica_id)
            case StopReplica():
                if worker_is_lost:
                    self._lose_source(order.replica_id)
                else:  # it may still compute: nobody may take its place
                    self.give_up(why)

    def _round_ended(
        self, entry: _Pending, answer: ToMigrator, options: MigratorOptions, *, now_ns: int
    ) -> None:
        entry.is_settled = True
        copying = self._copies[entry.order.worker_id]
        match answer:
            case ShapeFailed():
                copying.is_over = True
                self._count_failure()
            case ShapeDone():
                before = copying.blocks_left
                copying.blocks_left = answer.blocks_left
                copying.sessions_finishing = answer.sessions_finishing
                if answer.blocks_moved:
                    bytes_moved = answer.bytes_moved + answer.bytes_copied_here
                    copying.bytes_left = answer.blocks_left * bytes_moved // answer.blocks_moved
                if answer.blocks_left <= options.blocks_left_max:
                    copying.next_at_ns = now_ns + options.copy_interval_ns
                elif before is not None and answer.blocks_left >= before:
                    copying.is_over = True
                self._count(entry.order, answer)

    # ------------------------------------------------------------------ where it stands

    @property
    def bytes_left(self) -> int:
        """KV that the latest rounds left, estimated."""
        if not self._copies:
            return self._bytes_left_before
        return sum(copying.bytes_left for copying in self._copies.values())

    def turn(self, desk: OrderDesk) -> Turn | None:
        """Return the turn that the hand-over takes now; None while it stays where it is."""
        if not self.is_stored or self.began_at_ns is None:
            return None
        policy, state = self.handover.story.policy, self.handover.state
        if self.is_given_up and can_turn(policy, state, Turn.GIVE_UP):
            return Turn.GIVE_UP
        if can_turn(policy, state, Turn.HURRY) and self._must_hurry(desk):
            self.why = "a source ends before its targets could be ready"
            return Turn.HURRY
        if self._is_carried_out(desk):
            return Turn.CARRIED_OUT
        return None

    def _must_hurry(self, desk: OrderDesk) -> bool:
        return desk.timing.must_stop(self.handover, bytes_left=self.bytes_left)

    def _is_carried_out(self, desk: OrderDesk) -> bool:
        if not all(entry.is_settled for entry in self._pending.values()):
            return False
        match self.handover.state:
            case HandoverState.WAITING:
                return desk.timing.is_time(self.handover)
            case HandoverState.COPYING:
                return self._has_copied(desk) or self._must_hurry(desk)
            case HandoverState.LOADING:
                return all(entry.is_settled for entry in self._copy_orders.values())
            case _:
                return True

    def _has_copied(self, desk: OrderDesk) -> bool:
        if any(not entry.is_settled for entry in self._copy_orders.values()):
            return False
        return all(
            copying.has_copied(desk.options)
            for worker_id, copying in self._copies.items()
            if desk.view.is_alive(worker_id)
        )

    def give_up(self, why: str, *, is_failure: bool = True) -> None:
        """Undo the hand-over, if it still can be undone."""
        if not self.is_given_up:
            self.is_given_up = True
            self.is_failure = is_failure
            self.why = why

    def targets_formed(self) -> tuple[HandoverTarget, ...]:
        """Return the targets with what their workers said about themselves when staged."""
        staged = [
            (entry.order.replica_id, entry.done)
            for entry in self._pending.values()
            if entry.done is not None and isinstance(entry.order.message, StagePosition)
        ]
        formed = []
        for target in self.handover.targets:
            name = target.replica.replica_id
            answers = [done for replica_id, done in staged if replica_id == name]
            if answers:
                changes = {
                    "rendezvous": next((a.rendezvous for a in answers if a.rendezvous), ""),
                    "kv_blocks": min(answer.kv_blocks for answer in answers),
                }
                formed.append(target.model_copy(update=changes))
            else:
                formed.append(target)
        return tuple(formed)

    def enter(self, handover: Handover) -> None:
        """Be in another state, not stored yet."""
        self._bytes_left_before = self.bytes_left
        self.handover = handover
        self.is_stored = False
        self.why = ""
        self.began_at_ns = None
        self._pending = {}
        self._copy_orders = {}
        self._copies = {}

    # ------------------------------------------------------------------ losses and counts

    def _lose_source(self, replica_id: str) -> None:
        sources = tuple(
            source.model_copy(update={"is_lost": True})
            if source.replica.replica_id == replica_id
            else source
            for source in self.handover.sources
        )
        self.handover = self.handover.model_copy(update={"sources": sources})

    def _lose_target(self, replica_id: str, why: str) -> None:
        """A target that fails costs the hand-over; past the point of no return only itself.

        So does one that serves already, while others are left to take the sessions in.
        """
        targets = tuple(
            target.model_copy(update={"is_lost": True})
            if target.replica.replica_id == replica_id
            else target
            for target in self.handover.targets
        )
        self.handover = self.handover.model_copy(update={"targets": targets})
        for entry in self._pending.values():
            if entry.order.replica_id == replica_id and entry.order.line > 0:
                entry.is_settled = True  # a lead whose members failed is not activated
        if self.handover.is_futile:
            self.give_up(why)

    def _count(self, order: Order, answer: ShapeDone) -> None:
        self.totals = add_answer(self.totals, order.message, answer)

    def _count_failure(self) -> None:
        self.totals = add_failure(self.totals)
