"""Carries out a migrator's commands: positions are staged, loaded, formed, activated and dropped.

What a command asks for may be true already: it is then answered at once. What would break a promise
is refused as `wrong_state`: to serve before everything is there or while another position does, to
free what still serves. The states are in `positions`, copies in `copying`.
"""

from typing import assert_never

from libs.contracts.handover import (
    ActivateReplica,
    CopyKv,
    DropReplica,
    FormReplica,
    LoadWeights,
    ReleaseSessions,
    ResumeReplica,
    ShapeFailReason,
    StagePosition,
    StopReplica,
    ToShape,
)
from libs.contracts.sessions import RefuseReason
from libs.engine.scheduler import Scheduler
from services.gpu_worker.arriving import release_imports
from services.gpu_worker.commands import (
    AllocatePosition,
    FormGroup,
    FreePosition,
    LoadPosition,
)
from services.gpu_worker.copying import Copying
from services.gpu_worker.events import (
    GroupFormed,
    PositionAllocated,
    PositionFreed,
    PositionLoaded,
    PositionWorkFailed,
)
from services.gpu_worker.inheritance import release_sessions
from services.gpu_worker.positions import PositionPhase, WorkerPosition
from services.gpu_worker.shape_answers import ShapeAnswers, replica_id_of
from services.gpu_worker.state import WorkerState


class Shaping:
    """The worker as the migrator sees it."""

    def __init__(self, state: WorkerState, answers: ShapeAnswers, copying: Copying) -> None:
        self._state = state
        self._answers = answers
        self._copying = copying
        self._at_work: dict[str, WorkerPosition] = {}
        """By op_id: the position that a command under way is about."""

    def receive(self, message: ToShape) -> None:
        """Carry out a command, unless it is stale, was carried out, or is under way."""
        if not self._answers.begin(message):
            return
        if isinstance(message, StagePosition):
            self._stage(message)
            return
        position = self._state.positions.find(replica_id_of(message))
        if isinstance(message, DropReplica):
            self._drop(message, position)
        elif position is None:
            self._answers.failed(message.op_id, ShapeFailReason.UNKNOWN_REPLICA)
        else:
            self._change(message, position)

    def _change(
        self,
        message: LoadWeights
        | FormReplica
        | CopyKv
        | StopReplica
        | ResumeReplica
        | ActivateReplica
        | ReleaseSessions,
        position: WorkerPosition,
    ) -> None:
        match message:
            case LoadWeights():
                self._load(message, position)
            case FormReplica():
                self._form(message, position)
            case CopyKv():
                self._copying.copy(message, position)
            case StopReplica():
                self._copying.stop(message, position)
            case ResumeReplica():
                self._resume(message, position)
            case ActivateReplica():
                self._activate(message, position)
            case ReleaseSessions():
                self._release(message, position)
            case _:
                assert_never(message)

    # ------------------------------------------------------------------ staging

    def _stage(self, message: StagePosition) -> None:
        state = self._state
        roster = message.replica
        known = state.positions.find(roster.replica_id)
        if known is not None and known.roster.replica_epoch == roster.replica_epoch:
            self._answer_staged(message.op_id, known)
            return
        rank = self._rank_in(message)
        if rank is None:
            message_text = f"{state.options.worker_id} is not in the roster, or it is not whole"
            self._answers.failed(message.op_id, ShapeFailReason.UNKNOWN_REPLICA, message_text)
            return
        outdated = known or state.positions.outdated()
        if outdated is not None:
            self._free(outdated, op_id=f"{message.op_id}.free")
        position = WorkerPosition(
            roster=roster, rank=rank, batch_sequences_max=message.batch_sequences_max
        )
        state.positions.stage(position)
        self._at_work[message.op_id] = position
        state.emit(
            AllocatePosition(
                op_id=message.op_id, replica=roster, rank=rank, cause_id=state.cause_id
            )
        )

    def _rank_in(self, message: StagePosition) -> int | None:
        if not message.replica.is_whole:
            return None
        for worker in message.replica.workers:
            if worker.worker_id == self._state.options.worker_id:
                return worker.stage * message.replica.shards + worker.shard
        return None

    def allocated(self, event: PositionAllocated) -> None:
        """There is room; the lead can take in KV from now on."""
        position = self._position_of(event.op_id)
        if position is None:
            return
        position.is_allocated = True
        position.rendezvous = event.rendezvous
        self._set_blocks(position, event.kv_blocks)
        self._answer_staged(event.op_id, position)

    def _set_blocks(self, position: WorkerPosition, kv_blocks: int) -> None:
        position.kv_blocks = kv_blocks
        if position.is_lead:
            engine = self._state.options.engine_of(
                kv_blocks=kv_blocks,
                batch_sequences_max=position.batch_sequences_max,
            )
            position.scheduler = Scheduler(engine, tally=self._state.tally)
            position.tickets_ended.clear()

    def _answer_staged(self, op_id: str, position: WorkerPosition) -> None:
        self._answers.done(op_id, rendezvous=position.rendezvous, kv_blocks=position.kv_blocks)

    def _load(self, message: LoadWeights, position: WorkerPosition) -> None:
        if position.is_loaded:
            self._answers.done(message.op_id)
        elif not position.is_allocated:
            self._refuse(message, "the position is not staged yet")
        else:
            self._at_work[message.op_id] = position
            self._state.emit(
                LoadPosition(op_id=message.op_id, message=message, cause_id=self._state.cause_id)
            )

    def loaded(self, event: PositionLoaded) -> None:
        """The position has its weights."""
        self._state.reporting.weights_bytes = event.weights_bytes
        self._state.reporting.note_link_rates(event.link_rates)
        position = self._position_of(event.op_id)
        if position is None:
            return
        position.is_loaded = True
        self._answers.done(
            event.op_id,
            bytes_planned=event.bytes_planned,
            bytes_moved=event.bytes_from_peers,
            bytes_from_peers=event.bytes_from_peers,
            bytes_from_disk=event.bytes_from_disk,
            bytes_kept=event.bytes_kept,
            duration_ns=event.duration_ns,
        )

    def _form(self, message: FormReplica, position: WorkerPosition) -> None:
        if position.is_formed:
            self._answers.done(message.op_id, kv_blocks=position.kv_blocks)
        elif not position.is_allocated:
            self._refuse(message, "the position is not staged yet")
        elif not self._blocks_min() <= message.kv_blocks <= position.kv_blocks:
            detail = (
                f"{message.kv_blocks} blocks asked for: {position.kv_blocks} fit, and one session "
                f"may need {self._blocks_min()}"
            )
            self._answers.failed(message.op_id, ShapeFailReason.NO_MEMORY, detail)
        else:
            self._at_work[message.op_id] = position
            self._state.emit(
                FormGroup(
                    op_id=message.op_id,
                    replica_id=position.replica_id,
                    rendezvous=message.rendezvous,
                    kv_blocks=message.kv_blocks,
                    cause_id=self._state.cause_id,
                )
            )

    def _blocks_min(self) -> int:
        """KV of fewer blocks could not hold the longest session that routers send."""
        engine = self._state.options.engine
        return -(-engine.context_tokens_max // engine.block_tokens)

    def formed(self, event: GroupFormed) -> None:
        """The replica has met. KV that was copied into a larger pool before is lost with it."""
        position = self._position_of(event.op_id)
        if position is None:
            return
        command = self._answers.command_of(event.op_id)
        assert isinstance(command, FormReplica)
        if command.kv_blocks != position.kv_blocks:
            self._set_blocks(position, command.kv_blocks)
        position.is_formed = True
        self._answers.done(event.op_id, kv_blocks=position.kv_blocks)

    # ------------------------------------------------------------------ switching

    def _activate(self, message: ActivateReplica, position: WorkerPosition) -> None:
        state = self._state
        if position.is_broken:
            self._answers.failed(message.op_id, ShapeFailReason.BROKEN)
            return
        if not state.positions.can_activate(position):
            self._refuse(message, f"it is {position.phase}, or another position still serves")
            return
        is_new = position.phase is not PositionPhase.ACTIVE
        state.positions.activate(position)
        # From now on what was copied is cached like any prefix: its sessions come at once.
        release_imports(position)
        if is_new:
            state.report()
        self._answers.done(message.op_id, kv_blocks=position.kv_blocks)

    def _resume(self, message: ResumeReplica, position: WorkerPosition) -> None:
        state = self._state
        if position is not state.positions.serving or position.is_broken:
            self._refuse(message, "another position serves, or this one is broken")
            return
        if position.phase in (PositionPhase.STOPPING, PositionPhase.STOPPED):
            position.phase = PositionPhase.ACTIVE
            state.report()
        self._answers.done(message.op_id, sessions=len(state.sessions_at(position)))

    def _release(self, message: ReleaseSessions, position: WorkerPosition) -> None:
        state = self._state
        if not position.is_at_rest:
            self._refuse(message, "the replica has not been stopped")
            return
        released = release_sessions(
            state,
            position,
            "the replica changed its shape",
            worker_ids=message.target_worker_ids,
        )
        self._answers.done(message.op_id, sessions=released)

    # ------------------------------------------------------------------ dropping

    def _drop(self, message: DropReplica, position: WorkerPosition | None) -> None:
        if position is None:
            self._answers.done(message.op_id)
        elif not position.is_at_rest:
            self._refuse(message, "the replica still serves")
        else:
            self._free(position, op_id=message.op_id)

    def _free(self, position: WorkerPosition, *, op_id: str) -> None:
        state = self._state
        for session in state.sessions_at(position):
            state.send_away(session, RefuseReason.MOVED, "the replica is dropped")
        was_serving = position is state.positions.serving
        state.positions.drop(position)
        state.emit(
            FreePosition(op_id=op_id, replica_id=position.replica_id, cause_id=state.cause_id)
        )
        if was_serving:
            state.report()

    def freed(self, event: PositionFreed) -> None:
        """Memory is free again; a position that had to make room was freed for no command."""
        self._state.reporting.weights_bytes = event.weights_bytes
        if self._answers.is_under_way(event.op_id):
            self._answers.done(event.op_id)

    # ------------------------------------------------------------------ outcomes in general

    def failed(self, event: PositionWorkFailed) -> None:
        """Answer that the work failed. What could not even be allocated is held no more."""
        if not self._answers.is_under_way(event.op_id):
            return
        position = self._at_work.pop(event.op_id, None)
        if position is not None and not position.is_allocated and self._is_held(position):
            self._state.positions.drop(position)
        self._answers.failed(event.op_id, event.reason, event.message)

    def _position_of(self, op_id: str) -> WorkerPosition | None:
        """Return the position that the work was for; if it was dropped meanwhile, say so."""
        position = self._at_work.pop(op_id)
        if self._is_held(position):
            return position
        self._answers.failed(op_id, ShapeFailReason.UNKNOWN_REPLICA, "dropped meanwhile")
        return None

    def _is_held(self, position: WorkerPosition) -> bool:
        return self._state.positions.find(position.replica_id) is position

    def _refuse(self, message: ToShape, detail: str) -> None:
        self._answers.failed(message.op_id, ShapeFailReason.WRONG_STATE, detail)
