"""Copies KV away, as the lead of its source: offer, let every rank send, commit, batch by batch.

What is committed stays, however the copy ends; the next one offers the same blocks, and what is
missing is sent. A link that breaks ends the copy at its target, too.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from libs.contracts.handover import PlacedWorker, ReplicaRoster
from libs.contracts.peers import (
    BLOCKS_PER_COPY_MAX,
    CommitKv,
    EndKv,
    KvCommitted,
    KvEnded,
    KvOffered,
    KvSent,
    OfferKv,
    PeerRefusal,
    RankRoute,
    SendKv,
)
from libs.kernel.core import require
from libs.kernel.errors import ContractViolation, Unavailable
from libs.kernel.units import seconds
from libs.runtime.clock import Clock
from libs.transfer.peer_connections import PeerConnections
from libs.transfer.transport import Connection
from services.gpu_worker.peers.bodies import pack_integers, pack_pairs, unpack_pairs
from services.gpu_worker.peers.kv_plan import (
    CopyPlan,
    KvGeometry,
    WantedBlock,
    copy_plan,
    rank_of,
)
from services.gpu_worker.peers.kv_rank import KvRankSender
from services.gpu_worker.peers.ports import KvCopyEnd, KvCopySummary, PeerOptions
from services.gpu_worker.peers.questions import Purpose, RefusedByPeer, ask

TARGET_GONE = {PeerRefusal.UNKNOWN_REPLICA, PeerRefusal.STALE_EPOCH}


@dataclass(frozen=True, slots=True, kw_only=True)
class KvSource:
    """The sending side of copies of KV, at the lead."""

    worker_id: str
    geometry: KvGeometry
    connections: PeerConnections
    own_rank: KvRankSender
    clock: Clock
    options: PeerOptions

    async def copy(
        self,
        *,
        source: ReplicaRoster,
        target: ReplicaRoster,
        ticket_id: str,
        blocks: Sequence[tuple[int, int]],
        deadline_at_ns: int | None,
    ) -> KvCopySummary:
        """Copy what the target wants of these blocks; see PeerNetwork.copy_kv."""
        require(len(blocks) <= BLOCKS_PER_COPY_MAX, f"{len(blocks)} blocks in one copy")
        started_at_ns = self.clock.now_ns()
        run = _CopyRun(self, source=source, target=target, ticket_id=ticket_id)
        limit_ns = None if deadline_at_ns is None else max(0, deadline_at_ns - started_at_ns)
        try:
            async with asyncio.timeout(None if limit_ns is None else seconds(limit_ns)):
                end, message = await run.run(blocks)
        except TimeoutError:
            end, message = KvCopyEnd.DEADLINE, ""
        return KvCopySummary(
            end=end,
            message=message,
            bytes_planned=run.blocks_wanted * run.bytes_per_block,
            bytes_moved=run.bytes_moved,
            bytes_copied_here=run.bytes_copied_here,
            blocks_moved=run.blocks_moved,
            blocks_left=run.blocks_wanted - run.blocks_moved,
            hashes_committed=tuple(run.hashes_committed),
            duration_ns=self.clock.now_ns() - started_at_ns,
        )


class _CopyRun:
    """One copy, and what it has come to so far."""

    def __init__(
        self, parts: KvSource, *, source: ReplicaRoster, target: ReplicaRoster, ticket_id: str
    ) -> None:
        self.blocks_wanted = 0
        self.blocks_moved = 0
        self.hashes_committed: list[int] = []
        self.bytes_moved = 0
        self.bytes_copied_here = 0
        self.bytes_per_block = 0
        self._parts = parts
        self._source = source
        self._target = target
        self._ticket_id = ticket_id

    async def run(self, blocks: Sequence[tuple[int, int]]) -> tuple[KvCopyEnd, str]:
        """Copy until all is done or something fails; return how it ended, and why."""
        plan = copy_plan(self._source, self._target, self._parts.geometry)
        if plan is None:
            return KvCopyEnd.PEER_LOST, f"{self._source.replica_id} lacks a rank that is needed"
        lead = self._target.lead
        if lead is None:
            return KvCopyEnd.PEER_LOST, f"{self._target.replica_id} has no lead"
        self.bytes_per_block = plan.bytes_per_block
        try:
            async with self._parts.connections.borrow(
                lead.peer_address,
                purpose=Purpose.COPY,
                timeout_ns=self._parts.options.connect_ns,
            ) as link:
                await self._copy_over(link, plan, blocks)
        except RefusedByPeer as error:
            is_gone = error.reason in TARGET_GONE
            return KvCopyEnd.REFUSED if is_gone else KvCopyEnd.PEER_LOST, str(error)
        except (Unavailable, ContractViolation) as error:
            return KvCopyEnd.PEER_LOST, str(error)
        return KvCopyEnd.COMPLETE, ""

    async def _copy_over(
        self, link: Connection, plan: CopyPlan, blocks: Sequence[tuple[int, int]]
    ) -> None:
        wanted = await self._offer(link, blocks)
        self.blocks_wanted = len(wanted)
        try:
            batches = plan.batches(wanted, batch_bytes_max=self._parts.options.batch_bytes_max)
            for number, batch in enumerate(batches):
                sent = await self._send(plan, batch, number=number)
                await self._commit(link, batch)
                self.blocks_moved += len(batch)
                self.hashes_committed += [block_hash for block_hash, _, _ in batch]
                self.bytes_moved += sum(each.bytes_moved for each in sent)
                self.bytes_copied_here += sum(each.bytes_copied_here for each in sent)
            await self._ask(link, EndKv(ticket_id=self._ticket_id), KvEnded)
        except BaseException:
            # The target ends the copy when its link ends: that needs no answer, and no time.
            link.close()
            raise

    async def _offer(
        self, link: Connection, blocks: Sequence[tuple[int, int]]
    ) -> list[WantedBlock]:
        source_blocks = dict(blocks)
        question = OfferKv(
            replica_id=self._target.replica_id,
            replica_epoch=self._target.replica_epoch,
            ticket_id=self._ticket_id,
        )
        _, body = await ask(
            link,
            question,
            KvOffered,
            body=pack_integers(list(source_blocks)),
            timeout_ns=self._parts.options.answer_ns,
        )
        pairs = unpack_pairs(body, pairs_max=len(blocks))
        if not dict(pairs).keys() <= source_blocks.keys():
            link.close()
            raise ContractViolation("the target wants what was not offered")
        return [(block_hash, source_blocks[block_hash], target) for block_hash, target in pairs]

    async def _send(
        self, plan: CopyPlan, batch: Sequence[WantedBlock], *, number: int
    ) -> list[KvSent]:
        """Let every rank of the source send its part; wait for all, or for the first failure."""
        pairs = [(source, target) for _, source, target in batch]
        sendings = [
            asyncio.create_task(self._send_from(worker, question, pairs))
            for worker, question in self._questions(plan, number=number)
        ]
        try:
            return await asyncio.gather(*sendings)
        finally:
            for sending in sendings:
                sending.cancel()
            await asyncio.gather(*sendings, return_exceptions=True)

    def _questions(self, plan: CopyPlan, *, number: int) -> list[tuple[PlacedWorker, SendKv]]:
        by_source = plan.by_source()
        addresses = {worker.worker_id: worker.peer_address for worker in self._target.workers}
        return [
            (
                worker,
                SendKv(
                    ticket_id=self._ticket_id,
                    batch=number,
                    source_rank=rank_of(worker, self._source),
                    source_replica_id=self._source.replica_id,
                    source_replica_epoch=self._source.replica_epoch,
                    target_replica_id=self._target.replica_id,
                    target_replica_epoch=self._target.replica_epoch,
                    routes=tuple(
                        RankRoute(
                            worker_id=route.target_rank.worker_id,
                            peer_address=addresses[route.target_rank.worker_id],
                            layer_start=route.layers.start,
                            layer_stop=route.layers.stop,
                            head_start=route.heads.start,
                            head_stop=route.heads.stop,
                        )
                        for route in by_source[worker.worker_id]
                    ),
                ),
            )
            for worker in self._source.workers
            if worker.worker_id in by_source
        ]

    async def _send_from(
        self, worker: PlacedWorker, question: SendKv, pairs: Sequence[tuple[int, int]]
    ) -> KvSent:
        if worker.worker_id == self._parts.worker_id:
            return await self._parts.own_rank.send(question, pairs)
        async with self._parts.connections.borrow(
            worker.peer_address, purpose=Purpose.SEND, timeout_ns=self._parts.options.connect_ns
        ) as link:
            sent, _ = await ask(
                link,
                question,
                KvSent,
                body=pack_pairs(pairs),
                timeout_ns=self._parts.options.batch_ns,
            )
        return sent

    async def _commit(self, link: Connection, batch: Sequence[WantedBlock]) -> None:
        hashes = pack_integers([block_hash for block_hash, _, _ in batch])
        await self._ask(link, CommitKv(ticket_id=self._ticket_id), KvCommitted, body=hashes)

    async def _ask(
        self,
        link: Connection,
        question: CommitKv | EndKv,
        answer_type: type[KvCommitted] | type[KvEnded],
        body: bytes = b"",
    ) -> None:
        answer_ns = self._parts.options.answer_ns
        await ask(link, question, answer_type, body=body, timeout_ns=answer_ns)
