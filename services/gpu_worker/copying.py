"""Sends the KV of a replica's sessions to those that inherit them, while decoding and at the stop.

Only full blocks of running sessions go, in the order of their prefixes: online sessions before
offline ones, among equals the longest first. What a target is known to hold is not offered again.
Where the migrator sets terms, sessions that end in time and those that are computed again faster
than copied stay out of it; each round chooses anew.
The blocks under way are pinned: a session that ends meanwhile frees none that is about to be
gathered.

    CopyKv       blocks --> targets            (decoding goes on)
    StopReplica  last step, copies under way --> blocks filled since --> targets --> answer
"""

from dataclasses import dataclass, field

from libs.contracts.handover import (
    CopyKv,
    ReplicaRoster,
    ShapeFailReason,
    StopReplica,
)
from libs.contracts.peers import BLOCKS_PER_COPY_MAX
from libs.kernel.core import require
from libs.kernel.errors import InvariantViolation
from libs.policy.session_choice import SessionChoice
from services.gpu_worker.commands import CopyBlocks
from services.gpu_worker.events import BlocksCopied, PositionWorkFailed
from services.gpu_worker.inheritance import assign_targets
from services.gpu_worker.leaving import choices_for
from services.gpu_worker.positions import PositionPhase, WorkerPosition
from services.gpu_worker.sessions import HeldSession
from services.gpu_worker.shape_answers import ShapeAnswers
from services.gpu_worker.state import WorkerState


@dataclass(slots=True, kw_only=True, eq=False)
class _Round:
    """One CopyKv or StopReplica, from its first block to its answer."""

    message: CopyKv | StopReplica
    position: WorkerPosition
    started_at_ns: int
    has_stopped: bool = False
    """Whether it is this StopReplica that brought the replica to rest."""
    is_begun: bool = False
    choices: dict[str, SessionChoice] = field(default_factory=dict)
    """By sequence id, as of the beginning of the round."""
    targets_by_op_id: dict[str, str] = field(default_factory=dict)
    """Copies under way, one per target replica."""
    blocks_moved: int = 0
    bytes_planned: int = 0
    bytes_moved: int = 0
    bytes_copied_here: int = 0
    failure: PositionWorkFailed | None = None


class Copying:
    """The source's side of a copy. Rounds of one position follow one another."""

    def __init__(self, state: WorkerState, answers: ShapeAnswers) -> None:
        self._state = state
        self._answers = answers
        self._rounds: list[_Round] = []

    def copy(self, message: CopyKv, position: WorkerPosition) -> None:
        """Send what the targets lack, while the replica goes on."""
        self._queue(message, position, has_stopped=False)

    def stop(self, message: StopReplica, position: WorkerPosition) -> None:
        """Plan no further step, and send what is left once the last one is over."""
        is_active = position.phase is PositionPhase.ACTIVE
        if self._queue(message, position, has_stopped=is_active) and is_active:
            position.phase = self._phase_at_stop(position)
            self._state.report()

    def advance(self) -> None:
        """Begin the rounds whose turn has come; call it after every event."""
        for round_ in list(self._rounds):
            if not round_.is_begun and self._can_begin(round_):
                self._begin(round_)

    def copied(self, event: BlocksCopied) -> None:
        """Note what a target holds now."""
        self._state.reporting.note_link_rates(event.link_rates)
        round_, target = self._round_of(event.op_id)
        round_.position.outgoing.hashes_held.setdefault(target, set()).update(event.hashes_held)
        round_.blocks_moved += event.blocks_moved
        round_.bytes_planned += event.bytes_planned
        round_.bytes_moved += event.bytes_moved
        round_.bytes_copied_here += event.bytes_copied_here
        self._end_if_over(round_)

    def copy_failed(self, event: PositionWorkFailed) -> bool:
        """Note that a copy failed; say whether it was one of these at all."""
        if not any(event.op_id in round_.targets_by_op_id for round_ in self._rounds):
            return False
        round_, _ = self._round_of(event.op_id)
        round_.failure = event
        self._end_if_over(round_)
        return True

    def check_invariants(self) -> None:
        """Raise InvariantViolation if a round is forgotten."""
        for round_ in self._rounds:
            self._answers.command_of(round_.message.op_id)

    # ------------------------------------------------------------------ rounds

    def _queue(
        self, message: CopyKv | StopReplica, position: WorkerPosition, *, has_stopped: bool
    ) -> bool:
        refusal = self._refusal_of(position)
        if refusal is not None:
            self._answers.failed(message.op_id, *refusal)
            return False
        self._rounds.append(
            _Round(
                message=message,
                position=position,
                started_at_ns=self._state.now_ns,
                has_stopped=has_stopped,
            )
        )
        return True

    def _refusal_of(self, position: WorkerPosition) -> tuple[ShapeFailReason, str] | None:
        if position.is_broken:
            return ShapeFailReason.BROKEN, "a worker of the source is lost"
        if position.scheduler is None or position.phase is PositionPhase.STAGED:
            return ShapeFailReason.WRONG_STATE, "this worker leads no replica that served"
        return None

    def _phase_at_stop(self, position: WorkerPosition) -> PositionPhase:
        step = self._state.step
        is_running = step is not None and step.position is position
        return PositionPhase.STOPPING if is_running else PositionPhase.STOPPED

    def _can_begin(self, round_: _Round) -> bool:
        """Whether no other round of the position is under way and a stop has come to rest."""
        first = next(other for other in self._rounds if other.position is round_.position)
        is_stopping = round_.position.phase is PositionPhase.STOPPING
        return first is round_ and not (is_stopping and isinstance(round_.message, StopReplica))

    def _begin(self, round_: _Round) -> None:
        state, position, message = self._state, round_.position, round_.message
        round_.is_begun = True
        if position.is_broken or state.positions.find(position.replica_id) is not position:
            self._end(round_)
            return
        until = message.copy_until_unix_ns if isinstance(message, StopReplica) else None
        sessions = state.sessions_at(position)
        shares = assign_targets(position, sessions, message.targets)
        round_.choices = choices_for(state, position, sessions, message.terms)
        pinned: list[int] = []
        for target in message.targets:
            lacking = self._blocks_lacking(round_, shares[target.replica_id], target)
            blocks = lacking[:BLOCKS_PER_COPY_MAX]
            if not blocks:
                continue
            op_id = f"{message.op_id}.{len(round_.targets_by_op_id)}"
            round_.targets_by_op_id[op_id] = target.replica_id
            pinned += [block for _, block in blocks]
            state.emit(
                CopyBlocks(
                    op_id=op_id,
                    source=message.source,
                    target=target,
                    blocks=blocks,
                    copy_until_unix_ns=until,
                    cause_id=state.cause_id,
                )
            )
        assert position.scheduler is not None
        position.scheduler.pin_blocks(message.op_id, pinned)
        self._end_if_over(round_)

    def _blocks_lacking(
        self, round_: _Round, sessions: list[HeldSession], target: ReplicaRoster
    ) -> tuple[tuple[int, int], ...]:
        """Return the full blocks to copy that the target is not known to hold, each once.

        What a deadline cuts off is the end of them, so none of offline work may stand before one of
        online work: an InvariantViolation.
        """
        position = round_.position
        assert position.scheduler is not None
        held = position.outgoing.hashes_held[target.replica_id]
        lacking: dict[int, int] = {}
        has_offline = False
        for session in sessions:
            # Who came during the round is looked at in the next.
            if round_.choices.get(session.sequence_id) is not SessionChoice.COPY:
                continue
            require(session.is_offline or not has_offline, "KV of offline work would leave first")
            has_offline = session.is_offline
            for block_hash, block in position.scheduler.full_blocks(session.sequence_id):
                if block_hash not in held:
                    lacking.setdefault(block_hash, block)
        return tuple(lacking.items())

    def _round_of(self, op_id: str) -> tuple[_Round, str]:
        for round_ in self._rounds:
            if op_id in round_.targets_by_op_id:
                return round_, round_.targets_by_op_id.pop(op_id)
        raise InvariantViolation(f"{op_id} is not under way")

    def _end_if_over(self, round_: _Round) -> None:
        if not round_.targets_by_op_id:
            self._end(round_)

    def _end(self, round_: _Round) -> None:
        position, message = round_.position, round_.message
        self._rounds.remove(round_)
        assert position.scheduler is not None
        position.scheduler.release_blocks(message.op_id)
        if self._state.positions.find(position.replica_id) is not position:
            self._answers.failed(
                message.op_id, ShapeFailReason.UNKNOWN_REPLICA, "dropped meanwhile"
            )
        elif position.is_broken:
            self._answers.failed(message.op_id, ShapeFailReason.BROKEN, "broken meanwhile")
        elif round_.failure is not None:
            self._go_on(round_)
            self._answers.failed(message.op_id, round_.failure.reason, round_.failure.message)
        elif isinstance(message, StopReplica) and position.phase is PositionPhase.ACTIVE:
            self._answers.failed(message.op_id, ShapeFailReason.WRONG_STATE, "resumed meanwhile")
        else:
            self._answer(round_)

    def _go_on(self, round_: _Round) -> None:
        """A stop that fails leaves the worker as it was before."""
        position = round_.position
        if round_.has_stopped and position is self._state.positions.serving:
            position.phase = PositionPhase.ACTIVE
            self._state.report()

    def _answer(self, round_: _Round) -> None:
        position, message = round_.position, round_.message
        sessions = self._state.sessions_at(position)
        shares = assign_targets(position, sessions, message.targets)
        blocks_left = sum(
            len(self._blocks_lacking(round_, shares[target.replica_id], target))
            for target in message.targets
        )
        is_stop = isinstance(message, StopReplica)
        self._answers.done(
            message.op_id,
            bytes_planned=round_.bytes_planned,
            bytes_moved=round_.bytes_moved,
            bytes_copied_here=round_.bytes_copied_here,
            blocks_moved=round_.blocks_moved,
            blocks_left=blocks_left,
            sessions=len(sessions),
            sessions_finishing=sum(
                round_.choices.get(session.sequence_id) is SessionChoice.FINISH
                for session in sessions
            ),
            tokens_uncopied=self._tokens_uncopied(position, sessions) if is_stop else 0,
            duration_ns=self._state.now_ns - round_.started_at_ns,
        )

    def _tokens_uncopied(self, position: WorkerPosition, sessions: list[HeldSession]) -> int:
        """Count the computed tokens that no target holds: theirs is computed again."""
        assert position.scheduler is not None
        outgoing, size = position.outgoing, self._state.options.engine.block_tokens
        uncopied = 0
        for session in sessions:
            target = outgoing.target_by_sequence.get(session.sequence_id, "")
            held = outgoing.hashes_held.get(target, set())
            computed = position.scheduler.tokens_computed(session.sequence_id)
            copied_blocks = 0
            for block_hash, _ in position.scheduler.full_blocks(session.sequence_id):
                if block_hash not in held:
                    break
                copied_blocks += 1
            uncopied += computed - copied_blocks * size
        return uncopied
