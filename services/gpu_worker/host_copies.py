"""Carries out copies between the KV of this worker's positions and host memory, beside the steps.

They run on a thread of their own, one after another: a position's host memory is touched by one
copy at a time. Where the replica has other workers, all ranks copy at the same time.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar, assert_never

import structlog
import torch

from libs.engine.host_memory import HostMemory
from libs.kernel.errors import Unavailable
from libs.kernel.units import NS_PER_S
from libs.runtime.clock import Clock
from services.gpu_worker.commands import HostCommand, LoadBlocks, StoreBlocks
from services.gpu_worker.events import BlocksLoaded, BlocksStored, HostCopyFailed, HostEvent

_log = structlog.get_logger(__name__)

ResultT = TypeVar("ResultT")
Pairs = Sequence[tuple[int, int]]


class OtherRanks(Protocol):
    """The other workers of a replica that this one leads; a call ends when none of them copies
    any more. Raises: Unavailable if one is lost or could not."""

    async def store(self, replica_id: str, pairs: Pairs) -> None:
        """Let each copy these blocks into these slots of its own."""

    async def load(self, replica_id: str, pairs: Pairs) -> tuple[int, ...]:
        """Let each copy these slots into these blocks; return those that any found changed."""


class HostCopies:
    """The host memory of one worker's positions."""

    def __init__(self, clock: Clock, *, threads: int, others: OtherRanks | None = None) -> None:
        self._clock = clock
        self._others = others
        self._memories: dict[str, HostMemory] = {}
        self._thread = ThreadPoolExecutor(
            max_workers=1,
            thread_name_prefix="host-copies",
            initializer=torch.set_num_threads,
            initargs=(threads,),
        )

    def add(self, replica_id: str, memory: HostMemory) -> None:
        """Keep the checkpoints of this replica here."""
        self._memories[replica_id] = memory

    async def remove(self, replica_id: str) -> None:
        """Forget them; return when no copy of them is under way any more."""
        if self._memories.pop(replica_id, None) is not None:
            await self._to_its_end(lambda: None)

    def close(self) -> None:
        """Begin no other copy."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def carry_out(self, command: HostCommand) -> HostEvent:
        """Copy on every rank. Raises: Unavailable if one could not; nothing of it goes on then."""
        match command:
            case StoreBlocks():
                return await self._store(command)
            case LoadBlocks():
                return await self._load(command)
            case _:
                assert_never(command)

    async def _store(self, command: StoreBlocks) -> BlocksStored:
        started_at_ns = self._clock.now_ns()
        own = self.store_here(command.replica_id, command.pairs)
        if self._others is None:
            await own
        else:
            await _all(own, self._others.store(command.replica_id, command.pairs))
        return BlocksStored(
            op_id=command.op_id,
            duration_ns=self._clock.now_ns() - started_at_ns,
            cause_id=command.cause_id,
        )

    async def _load(self, command: LoadBlocks) -> BlocksLoaded:
        started_at_ns = self._clock.now_ns()
        own = self.load_here(command.replica_id, command.pairs)
        if self._others is None:
            corrupt = [await own]
        else:
            corrupt = await _all(own, self._others.load(command.replica_id, command.pairs))
        return BlocksLoaded(
            op_id=command.op_id,
            slots_corrupt=tuple(sorted({slot for slots in corrupt for slot in slots})),
            duration_ns=self._clock.now_ns() - started_at_ns,
            cause_id=command.cause_id,
        )

    async def store_here(self, replica_id: str, pairs: Pairs) -> None:
        """Store this worker's part. Raises: Unavailable if it cannot."""
        memory = self._memory(replica_id, max((slot for _, slot in pairs), default=0))
        await self._to_its_end(lambda: memory.store(pairs))

    async def load_here(self, replica_id: str, pairs: Pairs) -> tuple[int, ...]:
        """Load this worker's part; return the slots that were changed. Raises: Unavailable."""
        memory = self._memory(replica_id, max((slot for slot, _ in pairs), default=0))
        return await self._to_its_end(lambda: memory.load(pairs))

    def _memory(self, replica_id: str, slot_max: int) -> HostMemory:
        memory = self._memories.get(replica_id)
        if memory is None or slot_max >= memory.slots:
            raise Unavailable(f"{replica_id} has no such slots here", retry_after_ns=NS_PER_S)
        return memory

    async def _to_its_end(self, work: Callable[[], ResultT]) -> ResultT:
        """When this raises, cancelled or not, nothing of the work runs any more: the blocks go to
        others then."""
        running = asyncio.ensure_future(
            asyncio.get_running_loop().run_in_executor(self._thread, work)
        )
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            await asyncio.wait([running])
            raise


def host_copy_failed(command: HostCommand, error: Exception) -> HostCopyFailed:
    """Turn what a copy raised into its outcome."""
    _log.warning("host_copy_failed", op_id=command.op_id, reason=str(error))
    return HostCopyFailed(
        op_id=command.op_id, message=f"{type(error).__name__}: {error}", cause_id=command.cause_id
    )


async def _all(own: Awaitable[ResultT], others: Awaitable[ResultT]) -> list[ResultT]:
    """Await both to their ends; then raise what the first that failed has raised."""
    results = await asyncio.gather(own, others, return_exceptions=True)
    done: list[ResultT] = []
    for result in results:
        if isinstance(result, BaseException):
            raise result
        done.append(result)
    return done
