"""All hand-overs of one alias that are under way: begun, conducted, ended.

Works on the record as a value: takes the latest, returns the next. Whether and when it is stored is
the ownership's business, and no order of a state is given before that.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import permutations

from libs.contracts.handover import ReplicaRoster, ToMigrator
from libs.contracts.handover_record import (
    MOMENTS_MAX,
    STORIES_MAX,
    Handover,
    HandoverMoment,
    HandoverRecord,
    HandoverState,
    HandoverStory,
    HandoverTotals,
)
from libs.contracts.placement import Placement, Policy
from libs.kernel.core import require
from services.migrator.changes import Change, changes_between, is_wanted
from services.migrator.commands import Decision
from services.migrator.conduct import Conduct
from services.migrator.fleet_view import FleetView
from services.migrator.options import MigratorOptions
from services.migrator.orders import Order, OrderDesk
from services.migrator.patience import Patience
from services.migrator.timing import Timing
from services.migrator.transitions import ENDS, Turn, first_state, state_after


@dataclass(slots=True, kw_only=True)
class Progress:
    """What one look at all hand-overs brought."""

    record: HandoverRecord
    orders: list[tuple[Order, str]] = field(default_factory=list)
    """To be sent now, each with its cause."""
    decisions: list[Decision] = field(default_factory=list)


class Handovers:
    """The hand-overs under way; see the head of this file."""

    def __init__(self, options: MigratorOptions, view: FleetView) -> None:
        self._options = options
        self._view = view
        self._conducts: dict[str, Conduct] = {}
        self._patience = Patience(options)

    @property
    def conducts(self) -> Sequence[Conduct]:
        """Those under way, the oldest first."""
        return list(self._conducts.values())

    def check_invariants(self) -> None:
        """Raise InvariantViolation if a hand-over changes a worker of another one."""
        for conduct, other in permutations(self._conducts.values(), 2):
            changed = conduct.handover.changing_worker_ids & other.handover.worker_ids
            require(not changed, "two hand-overs share a worker")

    # ------------------------------------------------------------------ what is told

    def adopt(self, record: HandoverRecord) -> None:
        """Go on with what a former owner left."""
        self._conducts = {
            handover.handover_id: Conduct(handover=handover, totals=handover.story.totals)
            for handover in record.under_way
        }
        for conduct in self._conducts.values():
            if conduct.handover.is_futile:
                conduct.give_up("a target is lost")

    def forget(self) -> None:
        """Conduct nothing: the record is somebody else's."""
        self._conducts = {}

    def stored(self, record: HandoverRecord) -> None:
        """Note which states are in the record now."""
        known = {handover.handover_id: handover.story.moments for handover in record.under_way}
        for handover_id, conduct in self._conducts.items():
            conduct.is_stored = known.get(handover_id) == conduct.handover.story.moments

    def judge(self, placement: Placement) -> None:
        """Give up what a newer placement does not want, where that is still possible."""
        self._patience.forget()
        for conduct in self._conducts.values():
            handover = conduct.handover
            if not is_wanted(handover.sources, handover.targets, placement):
                why = f"placement {placement.plan_revision} wants something else"
                conduct.give_up(why, is_failure=False)

    def worker_restarted(self, worker_id: str) -> None:
        """A worker lives and has forgotten everything."""
        for conduct in self._conducts.values():
            if worker_id in conduct.worker_ids:
                conduct.worker_lost(worker_id)

    def answered(self, answer: ToMigrator, timing: Timing, record: HandoverRecord) -> bool:
        """Take an answer; return whether it was one that was waited for."""
        conduct = self._conducts.get(answer.handover_id)
        if conduct is None:
            return False
        desk = self._desk(conduct.handover, timing, record)
        return conduct.answered(answer, desk, now_ns=timing.now_ns)

    # ------------------------------------------------------------------ what follows

    def advance(
        self,
        record: HandoverRecord,
        timing: Timing,
        *,
        cause_id: str,
        handover_id: str | None = None,
        placement: Placement | None = None,
    ) -> Progress:
        """Look at one hand-over, or at all, and at what the placement wants beyond, if given."""
        progress = Progress(record=record)
        for conduct in self.conducts:
            if handover_id in (None, conduct.handover.handover_id):
                self._advance_one(conduct, timing, progress, cause_id=cause_id)
        if placement is not None:
            self._begin_new(placement, timing, progress, cause_id=cause_id)
        under_way = tuple(conduct.handover for conduct in self._conducts.values())
        known = {h.handover_id: h.story.moments for h in progress.record.under_way}
        now = {h.handover_id: h.story.moments for h in under_way}
        if known != now:
            progress.record = progress.record.model_copy(update={"under_way": under_way})
        return progress

    def _advance_one(
        self, conduct: Conduct, timing: Timing, progress: Progress, *, cause_id: str
    ) -> None:
        for worker_id in sorted(self._view.dead_among(conduct.worker_ids)):
            conduct.worker_lost(worker_id)
        desk = self._desk(conduct.handover, timing, progress.record)
        conduct.time_out(desk, now_ns=timing.now_ns)
        turn = conduct.turn(desk)
        if turn is None:
            orders = conduct.give(desk, now_ns=timing.now_ns)
            cause = conduct.handover.story.cause_id
            progress.orders.extend((order, cause) for order in orders)
            turn = conduct.turn(desk)
        if turn is not None:
            self._take_turn(conduct, turn, timing, progress, cause_id=cause_id)

    def _take_turn(
        self,
        conduct: Conduct,
        turn: Turn,
        timing: Timing,
        progress: Progress,
        *,
        cause_id: str,
    ) -> None:
        """Enter the next state in which there is something to do."""
        handover = conduct.handover
        if handover.state is HandoverState.STAGING:
            handover = handover.model_copy(update={"targets": conduct.targets_formed()})
        policy = handover.story.policy
        state = state_after(policy, handover.state, turn)
        policy = Policy.SPOTSERVE if turn is Turn.HURRY else policy
        reason = conduct.why
        handover = _entered(
            handover, state, policy, conduct.totals, timing.now_unix_ns, reason=reason
        )
        while not self._desk(handover, timing, progress.record).is_needed():
            state = state_after(policy, state, Turn.CARRIED_OUT)
            handover = _reentered(handover, state, timing.now_unix_ns, reason=reason)
        conduct.enter(handover)
        progress.decisions.append(_decision(handover, reason, cause_id=cause_id))
        if state in ENDS:
            self._end(conduct, progress, timing)
        else:
            self._view.disturb(sorted(handover.changing_worker_ids))

    def _end(self, conduct: Conduct, progress: Progress, timing: Timing) -> None:
        handover = conduct.handover
        del self._conducts[handover.handover_id]
        self._view.disturb(sorted(handover.changing_worker_ids))
        if conduct.is_failure:
            self._patience.failed(_key(handover), now_ns=timing.now_ns)
        record, totals = progress.record, handover.story.totals
        is_done = handover.state is HandoverState.DONE
        progress.record = record.model_copy(
            update={
                "handovers_done": record.handovers_done + is_done,
                "handovers_abandoned": record.handovers_abandoned + (not is_done),
                "weight_bytes_moved": record.weight_bytes_moved + totals.weight_bytes_from_peers,
                "kv_bytes_moved": record.kv_bytes_moved + totals.kv_bytes_moved,
                "ended": (*record.ended, handover.story)[-STORIES_MAX:],
            }
        )

    def _begin_new(
        self, placement: Placement, timing: Timing, progress: Progress, *, cause_id: str
    ) -> None:
        changes = changes_between(
            placement, self._view, under_way=[conduct.handover for conduct in self.conducts]
        )
        for change in changes.ready:
            record = progress.record
            handover = self._first_state(change, placement, timing, record)
            if handover.state in ENDS or not self._patience.allows(
                _key(handover), now_ns=timing.now_ns
            ):
                continue
            self._conducts[handover.handover_id] = Conduct(handover=handover)
            progress.record = record.model_copy(
                update={"handovers_begun": record.handovers_begun + 1}
            )
            progress.decisions.append(_decision(handover, "", cause_id=cause_id))
        record = progress.record
        revision = placement.plan_revision
        if changes.is_nothing and not self._conducts and record.plan_revision_reached < revision:
            progress.record = record.model_copy(
                update={"plan_revision": revision, "plan_revision_reached": revision}
            )
            reached = Decision(name="placement_reached", plan_revision=revision, cause_id=cause_id)
            progress.decisions.append(reached)
        elif record.plan_revision < revision:
            progress.record = record.model_copy(update={"plan_revision": revision})

    def _first_state(
        self, change: Change, placement: Placement, timing: Timing, record: HandoverRecord
    ) -> Handover:
        """Return the hand-over in the first state in which there is something to do."""
        policy = placement.policy
        state = HandoverState.RESUMING if change.is_resumption else first_state(policy)
        moment = HandoverMoment(state=state, entered_at_unix_ns=timing.now_unix_ns)
        handover = Handover(
            story=HandoverStory(
                handover_id=f"handover-{record.handovers_begun + 1}",
                policy=policy,
                plan_revision=placement.plan_revision,
                cause_id=placement.cause_id or f"placement-{placement.plan_revision}",
                source_replica_ids=tuple(s.replica.replica_id for s in change.sources),
                target_replica_ids=tuple(t.replica.replica_id for t in change.targets),
                moments=(moment,),
            ),
            sources=change.sources,
            targets=change.targets,
        )
        while not self._desk(handover, timing, record).is_needed():
            state = state_after(policy, state, Turn.CARRIED_OUT)
            handover = _reentered(handover, state, timing.now_unix_ns, reason="")
        return handover

    def _desk(self, handover: Handover, timing: Timing, record: HandoverRecord) -> OrderDesk:
        return OrderDesk(
            handover=handover,
            handover_epoch=record.handover_epoch,
            plan_revision=max(record.plan_revision, handover.story.plan_revision),
            view=self._view,
            timing=timing,
            options=self._options,
            find_others=partial(self._others, handover),
        )

    def _others(self, handover: Handover) -> tuple[ReplicaRoster, ...]:
        """Replicas that serve, whole, and that no hand-over ends."""
        ending = {
            source.replica.replica_id
            for conduct in self._conducts.values()
            for source in conduct.handover.sources
        } | {source.replica.replica_id for source in handover.sources}
        return tuple(
            replica.roster
            for replica in self._view.replicas()
            if replica.is_serving
            and not replica.is_broken
            and replica.roster.is_whole
            and replica.roster.replica_id not in ending
        )


def _entered(
    handover: Handover,
    state: HandoverState,
    policy: Policy,
    totals: HandoverTotals,
    now_unix_ns: int,
    *,
    reason: str,
) -> Handover:
    moment = HandoverMoment(state=state, entered_at_unix_ns=now_unix_ns, reason=reason[:256])
    moments = (*handover.story.moments, moment)
    require(len(moments) <= MOMENTS_MAX, f"{handover.handover_id} does not end")
    changes = {"moments": moments, "policy": policy, "totals": totals}
    return handover.model_copy(update={"story": handover.story.model_copy(update=changes)})


def _reentered(
    handover: Handover, state: HandoverState, now_unix_ns: int, *, reason: str
) -> Handover:
    """Put another state in place of the one entered last, in which there is nothing to do."""
    moment = HandoverMoment(state=state, entered_at_unix_ns=now_unix_ns, reason=reason[:256])
    moments = (*handover.story.moments[:-1], moment)
    return handover.model_copy(
        update={"story": handover.story.model_copy(update={"moments": moments})}
    )


def _decision(handover: Handover, reason: str, *, cause_id: str) -> Decision:
    story = handover.story
    return Decision(
        name="handover_entered",
        handover_id=story.handover_id,
        state=story.state,
        policy=story.policy,
        plan_revision=story.plan_revision,
        source_replica_ids=story.source_replica_ids,
        target_replica_ids=story.target_replica_ids,
        reason=reason,
        cause_id=story.cause_id or cause_id,
    )


def _key(handover: Handover) -> str:
    """What stays the same when the same change is tried again."""
    begun = [target.replica for target in handover.targets if not target.is_in_place]
    replicas = [*begun, *(source.replica for source in handover.sources)]
    return min(replica.replica_id for replica in replicas)
