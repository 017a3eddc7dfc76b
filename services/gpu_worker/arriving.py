"""KV that other workers copy into a replica which this worker leads.

Blocks are named by the hash of the prefix that they end: what the replica has already is not
wanted, and what arrives is found by the ordinary search for a cached prefix. So a copy that is cut,
late or lost costs computation and never a wrong token.
"""

from libs.kernel.core import require
from services.gpu_worker.commands import AnswerPeer
from services.gpu_worker.events import KvCommitted, KvDropped, KvOffered
from services.gpu_worker.positions import PositionPhase, WorkerPosition
from services.gpu_worker.state import WorkerState


class Arriving:
    """The target's side of a copy."""

    def __init__(self, state: WorkerState) -> None:
        self._state = state

    def offered(self, event: KvOffered) -> None:
        """Answer which of the blocks are wanted, and where each goes."""
        state = self._state
        position = self._current(event.replica_id, event.replica_epoch)
        blocks: tuple[tuple[int, int], ...] = ()
        if position is not None:
            assert position.scheduler is not None
            reserved = position.scheduler.reserve_imports(event.ticket_id, event.hashes)
            blocks = tuple(reserved.items())
        state.emit(AnswerPeer(op_id=event.op_id, blocks=blocks, cause_id=state.cause_id))

    def committed(self, event: KvCommitted) -> None:
        """Let sessions find what has arrived."""
        position = self._current(event.replica_id, event.replica_epoch)
        if position is None:
            self._state.counters.stale_dropped += 1
            return
        assert position.scheduler is not None
        position.scheduler.commit_imports(event.ticket_id, event.hashes)

    def dropped(self, event: KvDropped) -> None:
        """Reuse what did not arrive; keep what did until the replica serves."""
        position = self._current(event.replica_id, event.replica_epoch)
        if position is None:
            return
        assert position.scheduler is not None
        position.scheduler.drop_reserved(event.ticket_id)
        position.tickets_ended.append(event.ticket_id)
        if position.phase is PositionPhase.ACTIVE:
            release_imports(position)

    def _current(self, replica_id: str, replica_epoch: int) -> WorkerPosition | None:
        position = self._state.positions.current(replica_id, replica_epoch)
        if position is None or position.scheduler is None or position.is_broken:
            return None
        require(position.is_lead, f"{replica_id} is scheduled by a worker that is not its lead")
        return position


def release_imports(position: WorkerPosition) -> None:
    """Treat what was copied here like any cached prefix: used by who needs it, else evicted."""
    for ticket_id in position.tickets_ended:
        assert position.scheduler is not None
        position.scheduler.release_blocks(ticket_id)
    position.tickets_ended.clear()
