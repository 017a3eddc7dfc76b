"""What each state of a hand-over asks of whom.

The op_id of an order depends only on the hand-over, the state, the worker's place and the attempt,
so that a successor gives the very same orders and is answered what the owner before was answered.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypedDict, assert_never

from libs.contracts.handover import (
    ActivateReplica,
    CopyKv,
    DropReplica,
    FormReplica,
    LoadWeights,
    MovingTerms,
    PlacedWorker,
    ReleaseSessions,
    ReplicaRoster,
    ResumeReplica,
    StagePosition,
    StopReplica,
    ToShape,
    WeightsFrom,
)
from libs.contracts.handover_record import Handover, HandoverSource, HandoverState, HandoverTarget
from libs.contracts.placement import Policy
from services.migrator.fleet_view import FleetView
from services.migrator.layer_order import layer_order_of
from services.migrator.options import MigratorOptions
from services.migrator.timing import Timing
from services.migrator.transitions import is_from_disk


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """One command to one worker."""

    worker_id: str
    replica_id: str
    message: ToShape
    line: int = 0
    """Given when all of an earlier line have been answered."""


class _Envelope(TypedDict):
    handover_id: str
    handover_epoch: int
    migrator_id: str
    op_id: str
    plan_revision: int


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderDesk:
    """Writes the orders of one hand-over in its present state."""

    handover: Handover
    handover_epoch: int
    plan_revision: int
    view: FleetView
    timing: Timing
    options: MigratorOptions
    find_others: Callable[[], tuple[ReplicaRoster, ...]]
    """The replicas outside this hand-over that serve and hold all weights."""

    def orders(self, *, attempt: int = 0) -> tuple[Order, ...]:
        """Return what has to be answered before the state is carried out, for the living."""
        return tuple(self._to_living(attempt))

    def _to_living(self, attempt: int) -> Iterator[Order]:
        return (o for o in self._all(attempt) if self.view.is_alive(o.worker_id))

    def is_needed(self) -> bool:
        """Whether there is anything to do, or to wait for, in this state."""
        match self.handover.state:
            case HandoverState.WAITING | HandoverState.COPYING:
                return bool(self.copies(round_number=0))
            case HandoverState.DONE | HandoverState.ABANDONED:
                return True
            case _:
                return any(True for _ in self._to_living(attempt=0))

    def copies(self, *, round_number: int) -> tuple[Order, ...]:
        """Return one round of copying KV from every source whose sessions go to known targets."""
        return tuple(
            self._order(
                lead,
                source.replica,
                CopyKv(
                    **self._envelope(f"copy-s{index}", round_number),
                    source=self.view.without_dead(source.replica),
                    targets=targets,
                    terms=self._terms(source, may_finish=True),
                ),
            )
            for index, source, lead in self._speakers()
            if (targets := self._heirs_of(source))
        )

    def _all(self, attempt: int) -> Iterator[Order]:
        state = self.handover.state
        match state:
            case HandoverState.STAGING:
                return self._stage(attempt)
            case HandoverState.LOADING:
                return self._load(attempt)
            case HandoverState.FORMING:
                return self._form(attempt)
            case HandoverState.STOPPING:
                return self._stop(attempt)
            case HandoverState.ACTIVATING:
                return self._activate(attempt)
            case HandoverState.RELEASING:
                return self._release(attempt)
            case HandoverState.DROPPING:
                return self._drop(attempt)
            case HandoverState.RESUMING:
                return self._resume(attempt)
            case HandoverState.ABANDONING:
                return self._abandon(attempt)
            case (
                HandoverState.COPYING
                | HandoverState.WAITING
                | HandoverState.DONE
                | HandoverState.ABANDONED
            ):
                return iter(())
            case _:
                assert_never(state)

    # ------------------------------------------------------------------ targets

    def _stage(self, attempt: int) -> Iterator[Order]:
        for place, target, worker in self._newcomers():
            message = StagePosition(
                **self._envelope(place, attempt),
                replica=target.replica,
                batch_sequences_max=target.batch_sequences_max,
            )
            yield self._order(worker, target.replica, message)

    def _load(self, attempt: int) -> Iterator[Order]:
        policy = self.handover.story.policy
        staged = tuple(t.replica for t in self.handover.targets if not t.is_in_place)
        held = [self.view.without_dead(source.replica) for source in self.handover.sources]
        holders = (*(roster for roster in held if roster.workers), *self.find_others())
        layer_order = (
            layer_order_of(self.handover, self.options) if policy is Policy.SPOTSERVE else ()
        )
        for place, target, worker in self._newcomers():
            message = LoadWeights(
                **self._envelope(place, attempt),
                replica_id=target.replica.replica_id,
                weights_from=WeightsFrom.DISK if is_from_disk(policy) else WeightsFrom.PEERS,
                holders=() if is_from_disk(policy) else holders,
                targets=staged,
                layer_order=layer_order,
                buffer_bytes_max=self.options.load_buffer_bytes_max,
            )
            yield self._order(worker, target.replica, message)

    def _form(self, attempt: int) -> Iterator[Order]:
        for place, target, worker in self._newcomers():
            message = FormReplica(
                **self._envelope(place, attempt),
                replica_id=target.replica.replica_id,
                rendezvous=target.rendezvous,
                kv_blocks=max(1, target.kv_blocks),
            )
            yield self._order(worker, target.replica, message)

    def _activate(self, attempt: int) -> Iterator[Order]:
        """Members first: a lead that serves sends them work at once."""
        for place, target, worker in self._newcomers():
            replica = target.replica
            message = ActivateReplica(
                **self._envelope(place, attempt), replica_id=replica.replica_id
            )
            yield self._order(worker, replica, message, line=1 if worker == replica.lead else 0)

    # ------------------------------------------------------------------ sources

    def _stop(self, attempt: int) -> Iterator[Order]:
        """At the last attempt nothing is copied any more: what was computed is computed again."""
        for index, source, lead in self._speakers():
            is_last = attempt + 1 >= self.options.attempts_max
            targets = () if is_last or not self._is_moved(source) else self._heirs_of(source)
            message = StopReplica(
                **self._envelope(f"s{index}", attempt),
                source=self.view.without_dead(source.replica),
                targets=targets,
                copy_until_unix_ns=self.timing.copy_until_unix_ns(source),
                terms=self._terms(source, may_finish=False),
            )
            yield self._order(lead, source.replica, message)

    def _terms(self, source: HandoverSource, *, may_finish: bool) -> MovingTerms | None:
        """Only tideserve chooses for each session; spotserve moves all of a source or nothing."""
        if self.handover.story.policy is not Policy.TIDESERVE:
            return None
        return self.timing.terms(source, self.handover, may_finish=may_finish)

    def _is_moved(self, source: HandoverSource) -> bool:
        """Spotserve moves a source's KV only where that is faster than computing it again."""
        if self.handover.story.policy is not Policy.SPOTSERVE:
            return True
        return self.timing.is_worth_moving(source, self.handover)

    def _release(self, attempt: int) -> Iterator[Order]:
        for index, source, lead in self._speakers():
            heirs = (roster.lead for roster in self._heirs_of(source))
            message = ReleaseSessions(
                **self._envelope(f"s{index}", attempt),
                replica_id=source.replica.replica_id,
                target_worker_ids=tuple(heir.worker_id for heir in heirs if heir is not None),
            )
            yield self._order(lead, source.replica, message)

    def _drop(self, attempt: int) -> Iterator[Order]:
        """Free the sources, and targets that came to nothing; never the last that hold the model.

        What is kept so is a source again when there is a placement that can be reached.
        """
        targets = self.handover.targets
        serves = any(not target.is_lost for target in targets) or bool(self.find_others())
        is_remnant = not targets and all(source.is_lost for source in self.handover.sources)
        if serves or is_remnant or is_from_disk(self.handover.story.policy):
            for index, source in enumerate(self.handover.sources):
                orders = self._drop_replica(f"s{index}", source.replica, attempt)
                yield from (o for o in orders if not self._is_back(source, o.worker_id))
        for index, target in enumerate(targets):
            if target.is_lost and not target.is_in_place:
                yield from self._drop_replica(f"t{index}", target.replica, attempt)

    def _is_back(self, source: HandoverSource, worker_id: str) -> bool:
        """Whether a lead that was taken for dead may still have sessions.

        Those are released before it goes: by the next hand-over, as the placement does not want it.
        """
        lead, report = source.replica.lead, self.view.report_of(worker_id)
        is_lead = lead is not None and lead.worker_id == worker_id
        if not source.is_lost or not is_lead or report is None or report.position is None:
            return False
        held = report.position
        return held.replica_id == source.replica.replica_id and not held.is_broken

    def _resume(self, attempt: int) -> Iterator[Order]:
        for index, source, lead in self._speakers():
            message = ResumeReplica(
                **self._envelope(f"s{index}", attempt), replica_id=source.replica.replica_id
            )
            yield self._order(lead, source.replica, message)

    def _abandon(self, attempt: int) -> Iterator[Order]:
        """Undo what was done: nothing of it, or not all, may have reached its worker."""
        passed = {moment.state for moment in self.handover.story.moments}
        if HandoverState.STOPPING in passed and HandoverState.RELEASING not in passed:
            yield from self._resume(attempt)
        if HandoverState.STAGING in passed:
            for index, target in enumerate(self.handover.targets):
                if not target.is_in_place:
                    yield from self._drop_replica(f"t{index}", target.replica, attempt)

    # ------------------------------------------------------------------ who

    def _newcomers(self) -> Iterator[tuple[str, HandoverTarget, PlacedWorker]]:
        """Every worker of every target that does not serve yet, and its place."""
        for index, target in enumerate(self.handover.targets):
            if target.is_in_place or target.is_lost:
                continue
            for rank, worker in enumerate(target.replica.workers):
                yield f"t{index}-{rank}", target, worker

    def _speakers(self) -> Iterator[tuple[int, HandoverSource, PlacedWorker]]:
        """Every source that can still be spoken to, and its lead."""
        for index, source in enumerate(self.handover.sources):
            lead = source.replica.lead
            if not source.is_lost and lead is not None:
                yield index, source, lead

    def _heirs_of(self, source: HandoverSource) -> tuple[ReplicaRoster, ...]:
        return tuple(
            target.replica
            for target in self.handover.targets
            if source.replica.replica_id in target.inherits and not target.is_lost
        )

    def _drop_replica(self, place: str, replica: ReplicaRoster, attempt: int) -> Iterator[Order]:
        for rank, worker in enumerate(replica.workers):
            message = DropReplica(
                **self._envelope(f"{place}-{rank}", attempt), replica_id=replica.replica_id
            )
            yield self._order(worker, replica, message)

    def _order(
        self, worker: PlacedWorker, replica: ReplicaRoster, message: ToShape, *, line: int = 0
    ) -> Order:
        return Order(
            worker_id=worker.worker_id,
            replica_id=replica.replica_id,
            message=message,
            line=line,
        )

    def _envelope(self, place: str, attempt: int) -> _Envelope:
        handover_id = self.handover.handover_id
        return _Envelope(
            handover_id=handover_id,
            handover_epoch=self.handover_epoch,
            migrator_id=self.options.migrator_id,
            op_id=f"{handover_id}-{self.handover.state}-{place}-{attempt}",
            plan_revision=self.plan_revision,
        )
