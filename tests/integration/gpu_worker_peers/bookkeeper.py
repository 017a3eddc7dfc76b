"""The worker behind a peer network, reduced to keeping book; no torch, so that it starts fast."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from libs.engine.steps import StepPlan
from tests.integration.gpu_worker_peers.shapes import BLOCKS


@dataclass
class Bookkeeper:
    """The worker behind a network: remembers what it was told, gives out blocks in order."""

    known: set[int] = field(default_factory=set)
    free: list[int] = field(default_factory=lambda: list(range(BLOCKS)))
    plans: list[StepPlan] = field(default_factory=list)
    lost: list[tuple[str, str]] = field(default_factory=list)
    committed: dict[int, int] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)
    reserved: dict[str, dict[int, int]] = field(default_factory=dict)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def plan_received(self, *, replica_id: str, replica_epoch: int, plan: StepPlan) -> None:
        self.plans.append(plan)
        self.changed.set()

    def peer_lost(
        self, *, replica_id: str, replica_epoch: int, worker_id: str, reason: str
    ) -> None:
        self.lost.append((replica_id, worker_id))
        self.changed.set()

    async def kv_offered(
        self, *, replica_id: str, replica_epoch: int, ticket_id: str, hashes: tuple[int, ...]
    ) -> tuple[tuple[int, int], ...]:
        wanted = [block_hash for block_hash in hashes if block_hash not in self.known]
        pairs = [(block_hash, self.free.pop(0)) for block_hash in wanted[: len(self.free)]]
        self.reserved[ticket_id] = dict(pairs)
        return tuple(pairs)

    async def kv_committed(
        self, *, replica_id: str, replica_epoch: int, ticket_id: str, hashes: tuple[int, ...]
    ) -> None:
        for block_hash in hashes:
            self.committed[block_hash] = self.reserved[ticket_id].pop(block_hash)
            self.known.add(block_hash)

    async def kv_dropped(self, *, replica_id: str, replica_epoch: int, ticket_id: str) -> None:
        self.dropped.append(ticket_id)
        self.free += self.reserved.pop(ticket_id).values()
        self.changed.set()

    async def until(self, told: "Sequence[object]", *, count: int = 1) -> None:
        """Wait until one of the lists above has so many entries."""
        while len(told) < count:
            self.changed.clear()
            await self.changed.wait()
