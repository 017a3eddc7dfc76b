"""Lets each command of a migrator be carried out once, and answers it as often as it is repeated.

A command of an earlier owner of the hand-over, or of an earlier plan, is stale: whoever sent it was
replaced and does not know it yet.
"""

from libs.contracts.handover import (
    CopyKv,
    ShapeDone,
    ShapeFailed,
    ShapeFailReason,
    StagePosition,
    StopReplica,
    ToMigrator,
    ToShape,
)
from libs.kernel.bounded import RecentMap
from libs.kernel.core import require
from services.gpu_worker.commands import AnswerMigrator
from services.gpu_worker.state import WorkerState

DETAIL_CHARACTERS_MAX = 2048


class ShapeAnswers:
    """The commands under way, and the answers to those that are over."""

    def __init__(self, state: WorkerState) -> None:
        self._state = state
        self._answers: RecentMap[str, ToMigrator] = RecentMap(
            entries_max=state.options.shape_answers_max
        )
        self._under_way: dict[str, ToShape] = {}
        self._handover_epoch = 0
        self._plan_revision = 0

    def begin(self, message: ToShape) -> bool:
        """Say whether the command is to be carried out; if not, it is answered or soon will be."""
        if self._is_stale(message):
            self._state.counters.stale_dropped += 1
            # Not remembered: the current owner may use the same op_id.
            stale = self._failed(message, ShapeFailReason.STALE, "a later owner or plan has spoken")
            self._send(message, stale)
            return False
        answer = self._answers.get(message.op_id)
        if answer is not None:
            self._send(message, answer)
            return False
        if self._is_same_under_way(message):
            return False
        self._under_way[message.op_id] = message
        return True

    def is_under_way(self, op_id: str) -> bool:
        """Whether an answer with this id is still owed."""
        return op_id in self._under_way

    def command_of(self, op_id: str) -> ToShape:
        """Return the command under way with this id."""
        require(op_id in self._under_way, f"{op_id} is not under way")
        return self._under_way[op_id]

    def done(self, op_id: str, **brought_forth: int | str) -> None:
        """Answer that the command was carried out, with these fields of ShapeDone."""
        message = self.command_of(op_id)
        answer = ShapeDone.model_validate(
            {
                "worker_id": self._state.options.worker_id,
                "handover_id": message.handover_id,
                "op_id": op_id,
                **brought_forth,
            }
        )
        self._finish(message, answer)

    def failed(self, op_id: str, reason: ShapeFailReason, detail: str = "") -> None:
        """Answer that the command was not carried out."""
        message = self.command_of(op_id)
        self._finish(message, self._failed(message, reason, detail))

    def _is_stale(self, message: ToShape) -> bool:
        if message.handover_epoch < self._handover_epoch:
            return True
        if message.plan_revision < self._plan_revision:
            return True
        self._handover_epoch = message.handover_epoch
        self._plan_revision = message.plan_revision
        return False

    def _is_same_under_way(self, message: ToShape) -> bool:
        """Whether this very work is being done, be it for another owner or under another op_id.

        It is answered to whoever asked last; who asked under another id asks again.
        """
        if message.op_id in self._under_way:
            self._under_way[message.op_id] = message
            return True
        return any(
            type(other) is type(message) and replica_id_of(other) == replica_id_of(message)
            for other in self._under_way.values()
        )

    def _failed(self, message: ToShape, reason: ShapeFailReason, detail: str) -> ShapeFailed:
        return ShapeFailed(
            worker_id=self._state.options.worker_id,
            handover_id=message.handover_id,
            op_id=message.op_id,
            reason=reason,
            message=detail[:DETAIL_CHARACTERS_MAX],
        )

    def _finish(self, message: ToShape, answer: ToMigrator) -> None:
        del self._under_way[message.op_id]
        self._answers.put(message.op_id, answer)
        self._send(message, answer)

    def _send(self, message: ToShape, answer: ToMigrator) -> None:
        self._state.emit(
            AnswerMigrator(
                migrator_id=message.migrator_id, message=answer, cause_id=self._state.cause_id
            )
        )


def replica_id_of(message: ToShape) -> str:
    """Return the replica whose position here the command is about."""
    match message:
        case StagePosition():
            return message.replica.replica_id
        case CopyKv() | StopReplica():
            return message.source.replica_id
        case _:
            return message.replica_id
