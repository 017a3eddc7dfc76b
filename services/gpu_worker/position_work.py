"""What the shell asks of whoever keeps a worker's positions, and what becomes of its failures."""

from typing import Protocol, assert_never

from libs.contracts.handover import ShapeFailReason
from libs.kernel.errors import Unavailable
from libs.kernel.units import NS_PER_S
from services.gpu_worker.commands import (
    AllocatePosition,
    BreakGroup,
    CopyBlocks,
    FormGroup,
    FreePosition,
    LoadPosition,
    PositionCommand,
    RunStep,
    YieldStep,
)
from services.gpu_worker.events import (
    BlocksCopied,
    GroupFormed,
    PositionAllocated,
    PositionEvent,
    PositionFreed,
    PositionLoaded,
    PositionWorkFailed,
)


class PositionRefused(Unavailable):
    """What a command or a peer asks for cannot be done, and why; all is as it was before."""

    def __init__(self, reason: ShapeFailReason, message: str) -> None:
        super().__init__(message, retry_after_ns=NS_PER_S)
        self.reason = reason


class PositionHost(Protocol):
    """Keeps the memory, weights, KV and groups of a planned worker's positions.

    Raises, from any method that does work: PositionRefused; else Unavailable for a lost or silent
    peer.
    """

    async def allocate(self, command: AllocatePosition) -> PositionAllocated:
        """Make room for a position."""

    async def load(self, command: LoadPosition) -> PositionLoaded:
        """Bring its weights here."""

    async def form(self, command: FormGroup) -> GroupFormed:
        """Meet the other workers of its replica."""

    async def copy(self, command: CopyBlocks) -> BlocksCopied:
        """Send KV from the replica that this worker leads to another."""

    async def free(self, command: FreePosition) -> PositionFreed:
        """Give its memory back; work for it that is under way ends as refused."""

    def break_group(self, command: BreakGroup) -> None:
        """Let nobody wait any longer for a peer of this replica."""

    async def tell_members(self, command: RunStep) -> None:
        """Send the plan to the other workers of a replica that this one leads, if there are any."""

    async def tell_members_to_yield(self, command: YieldStep) -> None:
        """Ask the other workers of a replica that this one leads to end a step early."""


async def do_position_work(host: PositionHost, command: PositionCommand) -> PositionEvent:
    """Carry out one command."""
    match command:
        case AllocatePosition():
            return await host.allocate(command)
        case LoadPosition():
            return await host.load(command)
        case FormGroup():
            return await host.form(command)
        case CopyBlocks():
            return await host.copy(command)
        case FreePosition():
            return await host.free(command)
        case _:
            assert_never(command)


def position_work_failed(command: PositionCommand, error: Exception) -> PositionWorkFailed:
    """Turn what a command raised into its outcome."""
    match error:
        case PositionRefused():
            reason = error.reason
        case TimeoutError():
            reason = ShapeFailReason.TIMED_OUT
        case Unavailable():
            reason = ShapeFailReason.PEER_LOST
        case _:
            reason = ShapeFailReason.BROKEN
    return PositionWorkFailed(
        op_id=command.op_id,
        reason=reason,
        message=f"{type(error).__name__}: {error}",
        cause_id=command.cause_id,
    )
