"""The replicas that this worker has open now, and the one question everybody asks of them."""

from libs.contracts.handover import ReplicaRoster
from libs.contracts.peers import PeerRefusal
from libs.kernel.core import require
from services.gpu_worker.peers.open_replica import OpenReplica
from services.gpu_worker.peers.questions import Refusing

OPEN_MAX = 4
"""One that serves and one that is staged, each perhaps beside one that is about to be closed."""


class ReplicaBook:
    """Open replicas by id."""

    def __init__(self) -> None:
        self._replicas: dict[str, OpenReplica] = {}

    def add(self, replica: OpenReplica) -> None:
        """Open a replica. Raises: InvariantViolation if its id is open or too many are."""
        replica_id = replica.roster.replica_id
        require(replica_id not in self._replicas, f"{replica_id} is open already")
        require(len(self._replicas) < OPEN_MAX, f"{replica_id} would be one too many")
        self._replicas[replica_id] = replica

    def remove(self, replica_id: str) -> OpenReplica | None:
        """Close a replica to all that asks for it from now on."""
        return self._replicas.pop(replica_id, None)

    def get(self, replica_id: str) -> OpenReplica:
        """Return an open replica. Raises: Unavailable if there is none of this id."""
        replica = self._replicas.get(replica_id)
        if replica is None:
            raise Refusing(PeerRefusal.UNKNOWN_REPLICA, replica_id)
        return replica

    def all(self) -> tuple[OpenReplica, ...]:
        """Return every open replica."""
        return tuple(self._replicas.values())

    def same_as(self, roster: ReplicaRoster) -> OpenReplica | None:
        """Return this very replica, under this epoch, if it is open."""
        replica = self._replicas.get(roster.replica_id)
        if replica is None or replica.roster.replica_epoch != roster.replica_epoch:
            return None
        return replica

    def is_current(self, replica: OpenReplica) -> bool:
        """Whether it is still the one that is open under its id. May be asked in any thread."""
        return self._replicas.get(replica.roster.replica_id) is replica

    def find(self, replica_id: str, *, replica_epoch: int) -> OpenReplica:
        """Return the replica that a peer speaks of. Raises: Refusing."""
        replica = self.get(replica_id)
        own_epoch = replica.roster.replica_epoch
        if own_epoch != replica_epoch:
            raise Refusing(PeerRefusal.STALE_EPOCH, f"{replica_epoch}, here {own_epoch}")
        return replica
