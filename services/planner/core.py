"""The planner's core: one event in, commands out.

    reports, notices, silence --> Fleet --> (debounced) plan --> CommitPlacement --> announced
                                              ^                        |
                                  demand, every so often          Leadership (who may)

Level over edge: a plan is made from the whole view, whatever event led to it, and the same view
leads to the same placement. Nothing is committed that changes nothing. Of plans under way there is
one; what happens meanwhile leads to the next.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import assert_never

from libs.contracts.placement import Placement, Policy
from libs.contracts.preemption import NoticeWithdrawn, PreemptionNotice
from libs.contracts.reports import PlannerReport, WorkerReport
from libs.kernel.core import SetTimer, TimerFired, require
from libs.kernel.units import NS_PER_MS
from libs.policy.liveness import EchoLiveness
from services.planner.commands import (
    AnnouncePlacement,
    PingWorker,
    PlannerCommand,
    PublishReport,
    TellDecision,
)
from services.planner.demand_view import DemandView
from services.planner.events import (
    NoticeReceived,
    PinRequested,
    PlacementCommitted,
    PlacementConflict,
    PlacementRead,
    PlannerEvent,
    PlannerReported,
    PlannerStarted,
    QueueReported,
    RouterReported,
    StoreUnavailable,
    WithdrawalReceived,
    WorkerReported,
    WorkerUnreachable,
)
from services.planner.fleet import Fleet
from services.planner.leadership import Leadership, Role
from services.planner.options import PlannerOptions
from services.planner.pins import Pins
from services.planner.placing import PlanningMoment, is_other, make_placement
from services.planner.wishes import Wishes

REPORT_TIMER = "report"
CHECK_TIMER = "check"
PLAN_TIMER = "plan"
STORE_TIMER = "store"
REASONS_MAX = 16
"""Named in one placement; what comes on top is planned for all the same."""


@dataclass(slots=True, kw_only=True)
class PlannerCounters:
    """What has happened since the start, for reports and metrics."""

    plans_made: int = 0
    """Plans worked out, whether or not they changed anything."""
    placements_committed: int = 0
    times_fenced: int = 0
    """Writes that another planner's take-over made fail."""
    workers_lost: int = 0
    """Declared dead by their silence."""
    notices_heard: int = 0
    notices_of_unknown_nodes: int = 0
    placements_unreadable: int = 0
    store_failures: int = 0


class PlannerCore:
    """Decides everything a planner does; see the head of this file."""

    def __init__(self, options: PlannerOptions) -> None:
        self._options = options
        self.counters = PlannerCounters()
        self.fleet = Fleet(options)
        self.leadership = Leadership(
            planner_id=options.planner_id, alias=options.alias, policy=options.plan.policy
        )
        self.why_no_plan = ""
        self._wishes = Wishes(options)
        self._planners = EchoLiveness(options.liveness)
        self._leader_dead_id: str | None = None
        self._demand = _demand_view(options, window_ns=options.rate_window_ns)
        self._demand_lasting = _demand_view(options, window_ns=options.capacity.rate_window_ns)
        """What nodes are asked for by: they take longer to come than most waves last."""
        self._commands: list[PlannerCommand] = []
        self._now_ns = 0
        self._unix_offset_ns = 0
        self._cause_id = ""
        self._beat = 0
        self._echo_beat = -1
        self._reasons: dict[str, None] = {}
        self._has_led = False
        self._plan_at_ns = 0
        self._settled_at_ns = 0
        self._read_at_ns = 0
        self._reshaped_at_ns = 0
        self._requests_per_s_max: float | None = None
        self._pins = Pins(options)

    @property
    def placement(self) -> Placement | None:
        """The committed placement as last read or written."""
        stored = self.leadership.stored
        return None if stored is None else stored.placement

    @property
    def requests_per_s(self) -> float:
        """What is asked of the fleet: arrivals over the window, and offline work that is due."""
        return self._demand.requests_per_s(now_ns=self._now_ns)

    def handle(self, event: PlannerEvent, *, now_ns: int) -> Sequence[PlannerCommand]:
        """Apply one event and return the commands it brings forth, in order."""
        require(now_ns >= self._now_ns, "time went backwards")
        silent_ns = now_ns - self._now_ns
        self._now_ns = now_ns
        self._cause_id = event.cause_id
        if silent_ns > self._options.liveness.outage_ns:
            self._doubt()  # our own timers are late: we were frozen, and may have been replaced
        self._apply(event)
        commands, self._commands = self._commands, []
        return commands

    def check_invariants(self) -> None:
        """What must hold between any two events; raises InvariantViolation."""
        self.leadership.check_invariants()
        require(not self._commands, "commands are left behind")
        require(
            self.leadership.is_leading or not self._reasons, "a plan is due that nobody may make"
        )

    def _apply(self, event: PlannerEvent) -> None:
        match event:
            case PlannerStarted():
                self._unix_offset_ns = event.now_unix_ns - self._now_ns
                self._read()
                self._publish_report()
                self._set_timer(CHECK_TIMER, self._options.check_interval_ns)
            case TimerFired():
                self._timer_fired(event.key)
            case WorkerReported():
                self._worker_reported(event.report)
            case WorkerUnreachable():
                self.fleet.worker_unreachable(event.worker_id)
            case RouterReported():
                for demand in (self._demand, self._demand_lasting):
                    demand.router_reported(event.report, now_ns=self._now_ns)
            case QueueReported():
                for demand in (self._demand, self._demand_lasting):
                    demand.queue_reported(event.report, now_ns=self._now_ns)
            case PlannerReported():
                self._planner_reported(event)
            case NoticeReceived():
                self._notice_heard(event.notice)
            case WithdrawalReceived():
                self._notice_withdrawn(event.withdrawal)
            case PinRequested():
                self._pin_requested(event)
            case PlacementRead():
                self._placement_read(event)
            case PlacementCommitted():
                self._placement_committed(event)
            case PlacementConflict():
                self._placement_conflict(event)
            case StoreUnavailable():
                self._store_unavailable(event)
            case _:
                assert_never(event)

    # ------------------------------------------------------------------ the fleet

    def _worker_reported(self, report: WorkerReport) -> None:
        is_joining = not self.fleet.is_living(report.worker_id)
        if not self.fleet.worker_reported(report):
            return
        if is_joining:
            self._fleet_changed(
                f"{report.worker_id} joins", after_ns=self._options.join_debounce_ns
            )
        else:
            self._fleet_changed(f"{report.worker_id} reports something new")

    def _planner_reported(self, event: PlannerReported) -> None:
        report = event.report
        if report.planner_id != self._options.planner_id:
            if report.alias != self._options.alias:
                return
            self._planners.observe_peer(report.planner_id)
            if report.is_leader:
                self._doubt()
            if report.planner_id == self._leader_dead_id:
                self._leader_dead_id = None
        elif report.beat > self._echo_beat:  # a doubled echo must not count twice
            self._echo_beat = report.beat
            self._unix_offset_ns = event.received_at_unix_ns - self._now_ns
            self._echo_heard()

    def _echo_heard(self) -> None:
        for worker_id in self.fleet.echo_heard(now_ns=self._now_ns):
            self.counters.workers_lost += 1
            self._tell("worker_lost", worker_id=worker_id)
            self._fleet_changed(f"{worker_id} is silent")
        for worker_id in self.fleet.suspects():
            self._commands.append(PingWorker(worker_id=worker_id, cause_id=self._cause_id))
        silent = self._planners.observe_echo(now_ns=self._now_ns)
        leader_id = self.leadership.leader_id
        if leader_id is not None and leader_id in silent:
            self._leader_dead_id = leader_id
            self._tell("leader_lost", planner_id=leader_id)
            self._take_over_if_vacant()

    def _notice_heard(self, notice: PreemptionNotice) -> None:
        if not self.fleet.notices.hear(notice, now_ns=self._now_ns):
            return
        is_known = bool(self.fleet.workers_of(notice.node_id))
        self.counters.notices_heard += 1
        self.counters.notices_of_unknown_nodes += not is_known
        self._tell(
            "notice_heard",
            node_id=notice.node_id,
            notice_id=notice.notice_id,
            kind=notice.kind.value,
            grace_ms=-1 if notice.grace_ns is None else notice.grace_ns // NS_PER_MS,
            is_known=is_known,
        )
        self._fleet_changed(f"{notice.node_id} has {notice.kind.value} notice")

    def _notice_withdrawn(self, withdrawal: NoticeWithdrawn) -> None:
        if self.fleet.notices.withdraw(withdrawal):
            self._tell(
                "notice_withdrawn", node_id=withdrawal.node_id, notice_id=withdrawal.notice_id
            )
            self._fleet_changed(f"the notice of {withdrawal.node_id} is withdrawn")

    def _fleet_changed(self, reason: str, *, after_ns: int | None = None) -> None:
        self._wishes.fleet_changed(self.fleet)
        self._want_plan(reason, after_ns=after_ns)

    def _pin_requested(self, event: PinRequested) -> None:
        if not self.leadership.is_leading:
            return
        refusals = self._pins.request(event)
        self._commands += refusals
        if not refusals:
            shape = event.request.shape
            named = "any shape" if shape is None else f"{shape.stages} x {shape.shards}"
            self._tell("shape_pinned", shape=named)
            self._want_plan(f"the operator wants {named}")

    # ------------------------------------------------------------------ leading

    def _read(self) -> None:
        self._read_at_ns = self._now_ns
        self._emit(self.leadership.read(cause_id=self._cause_id))

    def _doubt(self) -> None:
        """Somebody else may lead by now: read before anything else is said or written."""
        if self.leadership.can_commit:
            self._reasons.clear()
            self._read()

    def _placement_read(self, event: PlacementRead) -> None:
        was_fenced = self.leadership.times_fenced
        if not self.leadership.placement_read(event):
            return
        self.counters.times_fenced += self.leadership.times_fenced - was_fenced
        if event.is_unreadable:
            self.counters.placements_unreadable += 1
            self._tell("placement_unreadable", revision=event.revision or 0)
        if self.leadership.is_leading:
            self._announce()
            self._lead()
            return
        self._reasons.clear()
        self._has_led = False
        leader_id = self.leadership.leader_id
        if leader_id not in (None, self._leader_dead_id) and not self._planners.is_alive(leader_id):
            self._planners.observe_peer(leader_id)
        self._take_over_if_vacant()

    def _take_over_if_vacant(self) -> None:
        leadership = self.leadership
        if leadership.role is not Role.STANDBY:
            return
        if leadership.leader_id in (None, self._leader_dead_id):
            self._emit(leadership.take_over(cause_id=self._cause_id))

    def _placement_committed(self, event: PlacementCommitted) -> None:
        was_leading = self.leadership.is_leading
        placement = self.leadership.committed(op_id=event.op_id, revision=event.revision)
        if placement is None:
            return
        self._announce()
        if not was_leading:
            self._lead()
            return
        self.counters.placements_committed += 1
        self.fleet.expect(placement)
        self._tell_placement(placement)
        self._commands += self._pins.committed(placement)
        if self._reasons:
            self._plan_after(self._options.debounce_ns)

    def _lead(self) -> None:
        """Go on from what is committed: after listening for a while, unless we led before."""
        placement = self.placement
        assert placement is not None
        if not self._has_led:
            self._has_led = True
            self.fleet.expect(placement)
            self._pins.adopt(placement)
            self._settled_at_ns = self._now_ns + self._options.settle_ns
            self._tell("leads", plan_revision=placement.plan_revision)
        self._want_plan(f"{self._options.planner_id} leads")

    def _placement_conflict(self, event: PlacementConflict) -> None:
        if self.leadership.is_awaited(event.op_id):
            self._reasons.clear()
            self._tell("commit_refused", role=self.leadership.role.value)
            self._read()

    def _store_unavailable(self, event: StoreUnavailable) -> None:
        if self.leadership.is_awaited(event.op_id):
            self.counters.store_failures += 1
            self._reasons.clear()
            self.leadership.outcome_unknown()
            self._set_timer(STORE_TIMER, self._options.store_retry_ns)

    def _announce(self) -> None:
        placement = self.placement
        assert placement is not None
        self._emit(AnnouncePlacement(placement=placement, cause_id=self._cause_id))

    # ------------------------------------------------------------------ planning

    def _want_plan(self, reason: str, *, after_ns: int | None = None) -> None:
        """Plan soon: what else happens until then makes no plan of its own."""
        if not self.leadership.is_leading:
            return
        if after_ns is None:
            after_ns = self._options.debounce_ns
        if not self._reasons or self._now_ns + after_ns < self._plan_at_ns:
            self._plan_after(after_ns)
        if len(self._reasons) < REASONS_MAX:
            self._reasons[reason] = None

    def _plan_after(self, after_ns: int) -> None:
        self._plan_at_ns = self._now_ns + after_ns
        self._set_timer(PLAN_TIMER, after_ns)

    def _plan(self) -> None:
        if not self._reasons or not self.leadership.can_commit:
            return  # a write under way ends in an event that looks at the reasons again
        before = self.placement
        assert before is not None
        is_early = self._now_ns < self._settled_at_ns
        if is_early or self.fleet.is_loss_likely or self.fleet.unheard(before):
            self._plan_after(self._options.debounce_ns)
            return
        self.leadership.revision_seen(self.fleet.plan_revision_floor)
        moment = PlanningMoment(
            plan_revision=self.leadership.plan_revision_next,
            requests_per_s=max(self.requests_per_s, self._options.requests_per_s_min),
            pinned_shape=self._pins.shape,
            reason="; ".join(self._reasons),
            cause_id=self._cause_id,
            now_ns=self._now_ns,
            now_unix_ns=self._now_ns + self._unix_offset_ns,
        )
        self._reasons.clear()
        planned = make_placement(self.fleet, before, options=self._options, moment=moment)
        self.counters.plans_made += 1
        self._requests_per_s_max = planned.requests_per_s_max
        self._reshaped_at_ns = self._now_ns
        if planned.why_no_plan != self.why_no_plan:
            self.why_no_plan = planned.why_no_plan
            self._tell(
                "no_shape_fits" if self.why_no_plan else "a_shape_fits", why=self.why_no_plan
            )
        if is_other(planned.placement, before):
            self._emit(self.leadership.commit(planned.placement, cause_id=self._cause_id))
        else:
            self._commands += self._pins.committed(before)
        self._say_capacity(is_changed=True)

    def _check_demand(self) -> None:
        """Plan anew if more arrives than the shape can serve, or if another might serve better.

        Only the policy that charges for a change may do it for a better shape: the others would
        follow every wave of the arrivals.
        """
        if self._now_ns - self._reshaped_at_ns < self._options.reshape_interval_ns:
            return
        most = self._requests_per_s_max
        is_behind = most is not None and self.requests_per_s > most
        if is_behind or self._options.plan.policy is Policy.TIDESERVE:
            self._want_plan(f"{self.requests_per_s:.2f} requests/s are asked for")

    def _say_capacity(self, *, is_changed: bool) -> None:
        placement = self.placement
        if placement is None or not self.leadership.is_leading:
            return
        lasting = self._demand_lasting.requests_per_s(now_ns=self._now_ns)
        command = self._wishes.next_command(
            self.fleet,
            placement,
            requests_per_s=max(lasting, self._options.requests_per_s_min),
            is_changed=is_changed,
            now_ns=self._now_ns,
            cause_id=self._cause_id,
        )
        if command is not None:
            self._emit(command)

    # ------------------------------------------------------------------ time and words

    def _timer_fired(self, key: str) -> None:
        match key:
            case "report":
                self._publish_report()
            case "check":
                self._check()
                self._set_timer(CHECK_TIMER, self._options.check_interval_ns)
            case "plan":
                self._plan()
            case "store":
                self._read()

    def _check(self) -> None:
        for node_id in self.fleet.notices.forget_old(now_ns=self._now_ns):
            self._fleet_changed(f"the notice of {node_id} is old")
        if self.leadership.is_leading:
            if self._now_ns >= self._settled_at_ns:
                self._check_demand()
                self._say_capacity(is_changed=False)
        elif (
            self.leadership.role is Role.STANDBY
            and self._now_ns - self._read_at_ns >= self._options.reread_interval_ns
        ):
            self._read()

    def _publish_report(self) -> None:
        nodes = self.fleet.node_ids
        placement = self.placement
        report = PlannerReport(
            planner_id=self._options.planner_id,
            beat=self._beat,
            process_id=self._options.process_id,
            alias=self._options.alias,
            is_leader=self.leadership.is_leading,
            policy=self._options.plan.policy.value,
            plan_revision=0 if placement is None else placement.plan_revision,
            nodes_live=len(nodes),
            nodes_leaving=sum(self.fleet.is_leaving(node_id) for node_id in nodes),
            requests_per_s=self.requests_per_s,
            plans_made=self.counters.plans_made,
            why_no_plan=self.why_no_plan[:1024],
        )
        self._beat += 1
        self._emit(PublishReport(report=report, cause_id=self._cause_id))
        self._set_timer(REPORT_TIMER, self._options.report_interval_ns)

    def _tell_placement(self, placement: Placement) -> None:
        self._tell(
            "placement_committed",
            plan_revision=placement.plan_revision,
            replica_ids=tuple(replica.replica_id for replica in placement.replicas),
            shapes=tuple(f"{r.stages}x{r.shards}" for r in placement.replicas),
            spare_worker_ids=placement.spare_worker_ids,
            leaving_node_ids=tuple(node.node_id for node in placement.leaving),
            reason=placement.reason,
        )

    def _tell(self, decision: str, **fields: str | int | float | tuple[str, ...]) -> None:
        self._emit(
            TellDecision(decision=decision, fields=tuple(fields.items()), cause_id=self._cause_id)
        )

    def _set_timer(self, key: str, after_ns: int) -> None:
        self._emit(SetTimer(key=key, after_ns=after_ns, cause_id=self._cause_id))

    def _emit(self, command: PlannerCommand) -> None:
        self._commands.append(command)


def _demand_view(options: PlannerOptions, *, window_ns: int) -> DemandView:
    return DemandView(window_ns=window_ns, request_tokens=options.profile.session_tokens)
