"""Keeps a planned worker's positions: their memory, weights, groups and links to their peers.

What touches KV runs on the engine's thread, between steps. What takes long runs beside it: weights
are read and decoders are built on a thread for loading, groups meet on a thread each, transfers on
the event loop. So the position that serves goes on while the next one is being staged.
"""

import asyncio
import contextlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final

import structlog
import torch

from libs.contracts.handover import ShapeFailReason
from libs.contracts.reports import LinkRate
from libs.engine.attention import PagedAttention
from libs.engine.host_memory import HostMemory
from libs.engine.parallel.group import Rendezvous, ReplicaGroup
from libs.engine.parallel.member import ReplicaModel, build_member, new_attention
from libs.engine.parallel.position import Position, check_shape, position_at
from libs.engine.parallel.slices import all_slices_of
from libs.engine.safepoints import SafepointCounters
from libs.kernel.core import present
from libs.kernel.errors import Unavailable
from libs.kernel.units import NS_PER_S
from libs.runtime.clock import Clock
from services.gpu_worker.commands import (
    AllocatePosition,
    BreakGroup,
    CopyBlocks,
    FormGroup,
    FreePosition,
    LoadPosition,
    RunStep,
    YieldStep,
)
from services.gpu_worker.engine_thread import EngineThread
from services.gpu_worker.events import (
    BlocksCopied,
    GroupFormed,
    PositionAllocated,
    PositionFreed,
    PositionLoaded,
)
from services.gpu_worker.host_copies import HostCopies
from services.gpu_worker.hosted_position import HostedPosition
from services.gpu_worker.peers.network import PeerNetwork
from services.gpu_worker.peers.ports import KvCopyEnd
from services.gpu_worker.position_memory import PositionMemory
from services.gpu_worker.position_work import PositionRefused
from services.gpu_worker.weight_loading import WeightLoading
from services.gpu_worker.weight_plan import plan_weights
from services.gpu_worker.yield_log import log_yield

_log = structlog.get_logger(__name__)


WORKER_TAIL: Final = 12
"""Characters of a worker's id that differ from process to process: enough for a ticket's name."""


class HostedPositions:
    """The positions of one worker, by replica; see PositionHost for what each method promises."""

    def __init__(
        self,
        *,
        worker_id: str,
        model: ReplicaModel,
        memory: PositionMemory,
        engine: EngineThread,
        clock: Clock,
        threads: int,
        peer_host: str,
        group_timeout_ns: int,
        copies: HostCopies,
    ) -> None:
        self._worker_id = worker_id
        self._model = model
        self._memory = memory
        self._engine = engine
        self._clock = clock
        self._peer_host = peer_host
        self._group_timeout_ns = group_timeout_ns
        self._copies = copies
        self._hosted: dict[str, HostedPosition] = {}
        self._changing = asyncio.Lock()
        """Allocations and releases follow one another in the order in which they were asked for."""
        self._loading = ThreadPoolExecutor(
            max_workers=1,
            thread_name_prefix="loading",
            initializer=torch.set_num_threads,
            initargs=(threads,),
        )
        self._breaking = ThreadPoolExecutor(max_workers=1, thread_name_prefix="breaking")
        self._telling: set[asyncio.Task[None]] = set()
        self._network: PeerNetwork | None = None
        self._weights: WeightLoading | None = None
        self.store = model.new_store()
        self.safepoint_counters = SafepointCounters()
        """Of all positions, one after another."""

    def connect(self, network: PeerNetwork) -> None:
        """Reach peers by this network from now on; before the first position."""
        self._network = network
        network.serve_weights(self.store)
        self._weights = WeightLoading(
            store=self.store, network=network, folder=self._model.folder, thread=self._loading
        )

    async def close(self) -> None:
        """Free everything."""
        async with self._changing:
            for hosted in list(self._hosted.values()):
                await self._free(hosted)
        for thread in (self._loading, self._breaking):
            thread.shutdown(wait=False, cancel_futures=True)

    # ------------------------------------------------------------------ for the shell

    async def allocate(self, command: AllocatePosition) -> PositionAllocated:
        """Make room for KV, and let peers reach the position."""
        async with self._changing:
            hosted = await self._host(command)
            self._hosted[command.replica.replica_id] = hosted
        try:
            await hosted.doing(self._peers.open_replica(hosted.roster, rank=command.rank))
        except BaseException:
            async with self._changing:
                await self._free(hosted)
            raise
        return PositionAllocated(
            op_id=command.op_id,
            kv_blocks=hosted.attention.shape.blocks,
            rendezvous="" if hosted.rendezvous is None else hosted.rendezvous.address,
            host_room=hosted.host_room,
            cause_id=command.cause_id,
        )

    async def load(self, command: LoadPosition) -> PositionLoaded:
        """Bring the weights that are missing, then build the decoder from them."""
        hosted = self._find(command.message.replica_id)
        return await hosted.doing(self._load(hosted, command))

    async def form(self, command: FormGroup) -> GroupFormed:
        """Meet the replica's other workers; alone there is nobody to meet."""
        hosted = self._find(command.replica_id)
        return await hosted.doing(self._form(hosted, command))

    async def copy(self, command: CopyBlocks) -> BlocksCopied:
        """Let every rank of the source send its part to the target."""
        hosted = self._find(command.source.replica_id)
        return await hosted.doing(self._copy(command))

    async def free(self, command: FreePosition) -> PositionFreed:
        """Free the position, if it is here, and the weights that no other one uses."""
        async with self._changing:
            hosted = self._hosted.get(command.replica_id)
            if hosted is not None:
                await self._free(hosted)
        return PositionFreed(
            op_id=command.op_id, weights_bytes=self._weights_bytes(), cause_id=command.cause_id
        )

    def break_group(self, command: BreakGroup) -> None:
        """Fail whoever waits in the group, on this worker and at its peers; tell the lead."""
        hosted = self._hosted.get(command.replica_id)
        if hosted is None:
            return
        if hosted.group is not None:
            # The engine's thread may be waiting in it, and is what shall be let go.
            self._breaking.submit(hosted.group.abort)
        if not hosted.position.is_lead:
            telling = asyncio.create_task(self._tell_lead(command.replica_id))
            self._telling.add(telling)
            telling.add_done_callback(self._telling.discard)

    async def tell_members(self, command: RunStep) -> None:
        """Send the plan to the members of a replica that this worker leads."""
        hosted = self._hosted.get(command.replica_id)
        if hosted is not None and hosted.has_members:
            await self._peers.send_plan(command.replica_id, command.plan)

    async def tell_members_to_yield(self, command: YieldStep) -> None:
        """Ask the members of a replica that this worker leads to end a step early."""
        hosted = self._hosted.get(command.replica_id)
        if hosted is not None and hosted.has_members:
            await self._peers.ask_to_yield(command.replica_id, command.step_id)

    # ------------------------------------------------------------------ for peers

    async def export_kv(
        self,
        *,
        replica_id: str,
        layers: range,
        heads: range,
        block_ids: Sequence[int],
        out: memoryview,
    ) -> None:
        """Gather a rectangle of these blocks, between two steps."""
        attention = self._find(replica_id).attention
        await self._engine.call_to_its_end(
            lambda: attention.export_blocks(
                layers=layers, heads=heads, block_ids=block_ids, out=out
            )
        )

    async def import_kv(
        self,
        *,
        replica_id: str,
        layers: range,
        heads: range,
        block_ids: Sequence[int],
        data: memoryview,
    ) -> None:
        """Scatter a rectangle into these blocks, between two steps.

        Raises: Unavailable if there are no such blocks: the pool was made smaller when the group
        formed.
        """
        attention = self._find(replica_id).attention
        if max(block_ids, default=0) >= attention.shape.blocks:
            raise Unavailable(f"{replica_id} has no such blocks", retry_after_ns=NS_PER_S)
        await self._engine.call_to_its_end(
            lambda: attention.import_blocks(
                layers=layers, heads=heads, block_ids=block_ids, data=data
            )
        )

    def request_yield(self, *, replica_id: str, step_id: int) -> None:
        """End this step at its next safepoint, if it is not over; the lead asks for it."""
        hosted = self._hosted.get(replica_id)
        if hosted is not None and hosted.member is not None:
            hosted.member.runner.request_yield(step_id)

    async def store_to_host(self, *, replica_id: str, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy blocks into host memory, beside the steps."""
        await self._copies.store_here(replica_id, pairs)

    async def load_from_host(
        self, *, replica_id: str, pairs: Sequence[tuple[int, int]]
    ) -> tuple[int, ...]:
        """Copy blocks back from host memory, beside the steps."""
        return await self._copies.load_here(replica_id, pairs)

    # ------------------------------------------------------------------ steps of the work

    @property
    def _peers(self) -> PeerNetwork:
        return present(self._network, "no peer network is connected")

    def _find(self, replica_id: str) -> HostedPosition:
        hosted = self._hosted.get(replica_id)
        if hosted is None:
            raise PositionRefused(ShapeFailReason.UNKNOWN_REPLICA, f"{replica_id} is not here")
        return hosted

    async def _host(self, command: AllocatePosition) -> HostedPosition:
        roster, config = command.replica, self._model.config
        refusal = check_shape(config, stages=roster.stages, shards=roster.shards)
        if refusal is not None:
            raise PositionRefused(ShapeFailReason.UNSUPPORTED_SHAPE, refusal)
        position = position_at(
            config,
            stages=roster.stages,
            shards=roster.shards,
            stage=command.rank // roster.shards,
            shard=command.rank % roster.shards,
        )
        kv_blocks = self._memory.kv_blocks(self._model, stages=roster.stages, shards=roster.shards)
        attention = await self._new_attention(position, kv_blocks)
        is_meeting = position.is_lead and position.ranks > 1
        return HostedPosition(
            roster=roster,
            position=position,
            attention=attention,
            rendezvous=Rendezvous(host=self._peer_host) if is_meeting else None,
            host_room=self._memory.host_room(
                self._model, stages=roster.stages, shards=roster.shards
            ),
        )

    async def _new_attention(self, position: Position, kv_blocks: int) -> PagedAttention:
        blocks_min = self._memory.blocks_min(self._model)
        if kv_blocks < blocks_min:
            message = f"{kv_blocks} KV blocks fit, and one session may need {blocks_min}"
            raise PositionRefused(ShapeFailReason.NO_MEMORY, message)
        try:
            return await self._engine.call(
                partial(new_attention, self._model, position, kv_blocks=kv_blocks)
            )
        except (MemoryError, torch.OutOfMemoryError) as error:
            raise PositionRefused(ShapeFailReason.NO_MEMORY, str(error)) from error

    async def _load(self, hosted: HostedPosition, command: LoadPosition) -> PositionLoaded:
        started_at_ns = self._clock.now_ns()
        assert self._weights is not None
        plan = plan_weights(
            command.message,
            worker_id=self._worker_id,
            target=hosted.roster,
            held=self.store.held(),
            config=self._model.config,
            element_bytes=self.store.element_bytes,
        )
        brought = await self._weights.bring(plan, replica_epoch=hosted.roster.replica_epoch)
        await self._build(hosted)
        return PositionLoaded(
            op_id=command.op_id,
            weights_bytes=self._weights_bytes(),
            bytes_planned=plan.bytes_planned,
            bytes_from_peers=brought.from_peers,
            bytes_from_disk=brought.from_disk,
            bytes_kept=plan.bytes_kept,
            link_rates=self._link_rates(),
            duration_ns=self._clock.now_ns() - started_at_ns,
            cause_id=command.cause_id,
        )

    async def _build(self, hosted: HostedPosition) -> None:
        """Build the decoder over the store's weights and the position's KV."""
        build = partial(build_member, self._model, hosted.position, self.store, hosted.attention)
        loop = asyncio.get_running_loop()
        member = await loop.run_in_executor(self._loading, build)
        if hosted.group is not None:
            member.join(hosted.group)
        hosted.member = member
        member.runner.safepoints.on_yield = log_yield
        member.runner.safepoints.counters = self.safepoint_counters
        self._engine.add(hosted.roster.replica_id, member.runner)

    async def _form(self, hosted: HostedPosition, command: FormGroup) -> GroupFormed:
        if command.kv_blocks != hosted.attention.shape.blocks:
            hosted.attention = await self._new_attention(hosted.position, command.kv_blocks)
            if hosted.member is not None:
                await self._build(hosted)
        if hosted.position.ranks > 1:
            hosted.group = await self._meet(hosted, command)
            if hosted.member is not None:
                hosted.member.join(hosted.group)
        if hosted.host_room.blocks:
            memory = HostMemory(hosted.attention, slots=hosted.host_room.blocks)
            self._copies.add(command.replica_id, memory)
        return GroupFormed(op_id=command.op_id, cause_id=command.cause_id)

    async def _meet(self, hosted: HostedPosition, command: FormGroup) -> ReplicaGroup:
        roster = hosted.roster
        meet = partial(
            ReplicaGroup,
            hosted.position,
            rendezvous=command.rendezvous,
            name=f"{roster.replica_id}/{roster.replica_epoch}",
            host=self._peer_host,
            device=self._model.device,
            timeout_ns=self._group_timeout_ns,
        )
        return await asyncio.to_thread(meet)

    async def _copy(self, command: CopyBlocks) -> BlocksCopied:
        deadline_at_ns = None
        if command.copy_until_unix_ns is not None:
            left_ns = command.copy_until_unix_ns - self._clock.now_unix_ns()
            deadline_at_ns = self._clock.now_ns() + max(0, left_ns)
        summary = await self._peers.copy_kv(
            source=command.source,
            target=command.target,
            ticket_id=f"{self._worker_id[-WORKER_TAIL:]}:{command.op_id}",
            blocks=command.blocks,
            deadline_at_ns=deadline_at_ns,
        )
        if summary.end in (KvCopyEnd.PEER_LOST, KvCopyEnd.REFUSED):
            raise Unavailable(f"{summary.end}: {summary.message}", retry_after_ns=NS_PER_S)
        hashes_held = summary.hashes_committed
        if summary.end is KvCopyEnd.COMPLETE:
            # What was not wanted was there already.
            hashes_held = tuple(block_hash for block_hash, _ in command.blocks)
        return BlocksCopied(
            op_id=command.op_id,
            hashes_held=hashes_held,
            blocks_moved=summary.blocks_moved,
            bytes_planned=summary.bytes_planned,
            bytes_moved=summary.bytes_moved,
            bytes_copied_here=summary.bytes_copied_here,
            link_rates=self._link_rates(),
            duration_ns=summary.duration_ns,
            cause_id=command.cause_id,
        )

    async def _tell_lead(self, replica_id: str) -> None:
        """Let the lead know at once; it would also find out by the next step or by silence."""
        with contextlib.suppress(Unavailable):
            await self._peers.report_failure(replica_id, "its step failed")

    async def _free(self, hosted: HostedPosition) -> None:
        replica_id = hosted.roster.replica_id
        if self._hosted.get(replica_id) is not hosted:
            return  # freed already, by who waited for the same lock
        await hosted.end_work()
        await self._peers.close_replica(replica_id)
        self._hosted.pop(replica_id, None)
        self._engine.remove(replica_id)
        await self._copies.remove(replica_id)
        if hosted.group is not None:
            self._breaking.submit(hosted.group.abort)
        # Behind whatever step of it is still under way; then nothing uses its memory any more.
        await self._engine.call(hosted.forget)
        kept = [
            slice_
            for other in self._hosted.values()
            for slice_ in all_slices_of(
                self._model.config, other.position, element_bytes=self.store.element_bytes
            )
        ]
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._loading, self.store.keep_only, kept)

    def _weights_bytes(self) -> int:
        return sum(slice_.bytes for slice_ in self.store.held())

    def _link_rates(self) -> tuple[LinkRate, ...]:
        return tuple(
            LinkRate(peer_worker_id=worker_id, bytes_per_s=rate)
            for worker_id, rate in sorted(self._peers.link_rates.items())
        )
