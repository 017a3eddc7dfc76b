"""The engine's steps: those that a lead plans, and those that a member is told to compute.

A lead has one step in flight, and the next as soon as its scheduler has work. A member runs what
its lead sends, in order, and samples nothing. A step that fails in a replica of several workers
means that a peer is lost: the position is broken, its sessions go on elsewhere and the process
lives. In a replica of one it means that the engine itself cannot be trusted: the process ends.
"""

from libs.contracts.sessions import RefuseReason
from libs.engine.steps import StepPlan
from libs.kernel.core import require
from services.gpu_worker.commands import EXIT_ENGINE_FAILED, BreakGroup, RunStep, YieldStep
from services.gpu_worker.events import PeerLost, PlanReceived, StepFailed, StepFinished
from services.gpu_worker.positions import PositionPhase, WorkerPosition
from services.gpu_worker.state import StepInFlight, WorkerState


class Stepping:
    """Decides when the engine steps, and what a step's outcome means."""

    def __init__(self, state: WorkerState) -> None:
        self._state = state

    def run_next_step(self) -> None:
        """Plan a step of the replica that this worker leads, if none is in flight."""
        state = self._state
        position = state.positions.serving
        if state.step is not None or position is None or not position.is_serving:
            return
        assert position.scheduler is not None
        plan = position.scheduler.schedule(now_ns=state.now_ns)
        if plan is None:
            return
        self._count_recomputed(plan)
        op_id = f"{position.replica_id}/{plan.step_id}"
        state.step = StepInFlight(op_id=op_id, plan=plan, position=position)
        self._run(op_id, position, plan)

    def yield_step_if_late(self) -> None:
        """Have the step under way given up if an online session that came since would be late."""
        state = self._state
        step = state.step
        if step is None or step.position.scheduler is None or step.position.is_broken:
            return
        step_id = step.position.scheduler.step_to_yield(now_ns=state.now_ns)
        if step_id is not None:
            state.emit(
                YieldStep(
                    replica_id=step.position.replica_id, step_id=step_id, cause_id=state.cause_id
                )
            )

    def plan_received(self, event: PlanReceived) -> None:
        """Compute our part of a step. Its lead has been told to begin, so we may, too."""
        positions = self._state.positions
        position = positions.current(event.replica_id, event.replica_epoch)
        if position is None or position.is_lead or not positions.can_activate(position):
            self._state.counters.stale_dropped += 1
            return
        positions.activate(position)
        self._run(f"{position.replica_id}/{event.plan.step_id}", position, event.plan)

    def step_finished(self, event: StepFinished) -> None:
        """Deliver what the step brought forth. A member's steps bring forth nothing."""
        state = self._state
        if event.result is None:
            return
        step = self._take_step(event.op_id)
        if step.position.is_broken or step.position.scheduler is None:
            return  # its sessions have been sent away
        emitted = step.position.scheduler.account(event.result, now_ns=state.now_ns)
        if not event.result.is_yielded:
            state.reporting.step_finished(tokens=len(emitted), duration_ns=event.duration_ns)
        state.emit(
            *state.delivery.deliver(
                emitted,
                step_id=event.result.step_id,
                now_ns=state.now_ns,
                cause_id=event.cause_id,
            )
        )
        if step.position.phase is PositionPhase.STOPPING:
            step.position.phase = PositionPhase.STOPPED

    def step_failed(self, event: StepFailed) -> None:
        """Break the replica, or end the process if the replica is this worker alone."""
        position = self._state.positions.find(event.replica_id)
        is_own = self._state.step is not None and self._state.step.op_id == event.op_id
        step = self._take_step(event.op_id) if is_own else None
        if step is not None and step.position.is_alone:
            self._fail_engine(step, event.reason)
        elif position is not None:
            self.break_position(position, event.reason)

    def peer_lost(self, event: PeerLost) -> None:
        """A replica without one of its workers computes nothing any more."""
        position = self._state.positions.current(event.replica_id, event.replica_epoch)
        if position is not None:
            self.break_position(position, f"{event.worker_id}: {event.reason}")

    def break_position(self, position: WorkerPosition, reason: str) -> None:
        """Send its sessions elsewhere; it stays until it is dropped."""
        state = self._state
        if position.is_broken:
            return
        if position.phase is not PositionPhase.STOPPED:
            # Of a replica that is being dropped, one worker is always gone first.
            state.counters.replicas_broken += 1
        for session in state.sessions_at(position):
            state.send_away(session, RefuseReason.MOVED, f"the replica is broken: {reason}")
        position.is_broken = True
        state.emit(BreakGroup(replica_id=position.replica_id, cause_id=state.cause_id))
        state.report()

    def check_invariants(self) -> None:
        """Raise InvariantViolation if the engine stands still and could step."""
        position = self._state.positions.serving
        if self._state.step is not None or position is None or not position.is_serving:
            return
        assert position.scheduler is not None
        load = position.scheduler.load()
        require(
            load.sequences_running + load.sequences_waiting == 0 or position.scheduler.may_rest,
            "the engine has work and stands still",
        )

    def _run(self, op_id: str, position: WorkerPosition, plan: StepPlan) -> None:
        state = self._state
        state.emit(
            RunStep(op_id=op_id, replica_id=position.replica_id, plan=plan, cause_id=state.cause_id)
        )

    def _take_step(self, op_id: str) -> StepInFlight:
        step, self._state.step = self._state.step, None
        require(step is not None and step.op_id == op_id, f"{op_id} is not in flight")
        assert step is not None
        return step

    def _fail_engine(self, step: StepInFlight, reason: str) -> None:
        """One session of the step may be the poison: none of them is tried again here, and the
        engine's state is not trusted with the others either."""
        state = self._state
        in_step = {entry.sequence_id for entry in step.plan.entries}
        for session in state.sessions:
            if session.sequence_id in in_step:
                state.send_away(session, RefuseReason.ENGINE_ERROR, reason)
            else:
                state.send_away(session, RefuseReason.DRAINING, "the engine failed")
        state.stop(EXIT_ENGINE_FAILED, f"the engine failed: {reason}")

    def _count_recomputed(self, plan: StepPlan) -> None:
        """Count what is computed again of the sessions that came with tokens.

        The last known token has no KV anywhere, so to compute it is no loss.
        """
        starts = {entry.sequence_id: entry.start_position for entry in plan.entries}
        for request in plan.opened:
            if request.generated_token_ids:
                recomputed = request.tokens_known - 1 - starts[request.sequence_id]
                self._state.reporting.tokens_recomputed += recomputed
