"""One position as the engine has it: its KV from the start, then its weights, then its group."""

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

from libs.contracts.handover import ReplicaRoster, ShapeFailReason
from libs.engine.attention import PagedAttention
from libs.engine.parallel.group import Rendezvous, ReplicaGroup
from libs.engine.parallel.member import ReplicaMember
from libs.engine.parallel.position import Position
from services.gpu_worker.checkpoint_options import HostRoom
from services.gpu_worker.position_work import PositionRefused

ResultT = TypeVar("ResultT")


@dataclass(slots=True, kw_only=True, eq=False)
class HostedPosition:
    """What a worker keeps of a position until it is freed."""

    roster: ReplicaRoster
    position: Position
    attention: PagedAttention
    """Its KV, into which blocks are copied before there are weights."""
    rendezvous: Rendezvous | None
    """Of the lead of several workers."""
    host_room: HostRoom
    """For checkpoints of its KV."""
    member: ReplicaMember | None = None
    group: ReplicaGroup | None = None
    is_freed: bool = False
    _work: set[asyncio.Task[Any]] = field(default_factory=set)

    @property
    def has_members(self) -> bool:
        """Whether this worker leads others."""
        return self.position.is_lead and self.position.ranks > 1

    async def doing(self, work: Coroutine[Any, Any, ResultT]) -> ResultT:
        """Do something for the position that ends when it is freed.

        Raises: PositionRefused in that case.
        """
        task = asyncio.create_task(work)
        self._work.add(task)
        try:
            return await task
        except asyncio.CancelledError:
            if self.is_freed:
                raise PositionRefused(
                    ShapeFailReason.UNKNOWN_REPLICA, "dropped meanwhile"
                ) from None
            task.cancel()
            raise
        finally:
            self._work.discard(task)

    async def end_work(self) -> None:
        """Stop all that is being done for the position, and wait until it has stopped."""
        self.is_freed = True
        work = list(self._work)
        for task in work:
            task.cancel()
        if work:
            await asyncio.wait(work)

    def forget(self) -> None:
        """Let go of decoder and group; on the engine's thread, after its last step."""
        self.member = None
        self.group = None
        self.rendezvous = None
