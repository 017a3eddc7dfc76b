"""Lets the members of a replica copy between their KV and host memory, as its lead says."""

from collections.abc import Sequence

from libs.contracts.peers import LoadFromHost, StoreToHost
from libs.kernel.core import present
from services.gpu_worker.peers.network import PeerNetwork

Pairs = Sequence[tuple[int, int]]


class MemberCopies:
    """The other ranks of every replica that this worker leads; see OtherRanks."""

    def __init__(self) -> None:
        self._network: PeerNetwork | None = None
        self._copies = 0

    def connect(self, network: PeerNetwork) -> None:
        """Reach members by this network from now on; before the first copy."""
        self._network = network

    async def store(self, replica_id: str, pairs: Pairs) -> None:
        """Let each copy these blocks into these slots of its own."""
        await self._peers.copy_host(replica_id, StoreToHost(copy_id=self._next_id()), pairs)

    async def load(self, replica_id: str, pairs: Pairs) -> tuple[int, ...]:
        """Let each copy these slots into these blocks; return those that any found changed."""
        question = LoadFromHost(copy_id=self._next_id())
        return await self._peers.copy_host(replica_id, question, pairs)

    @property
    def _peers(self) -> PeerNetwork:
        return present(self._network, "no peer network is connected")

    def _next_id(self) -> str:
        self._copies += 1
        return f"host-{self._copies}"
