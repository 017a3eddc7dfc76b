"""Brings what other workers say before the core, and the core's answers back to them."""

import asyncio
from collections.abc import Callable

from libs.engine.steps import StepPlan
from libs.kernel.errors import Unavailable
from libs.kernel.units import NS_PER_S, seconds
from services.gpu_worker.commands import AnswerPeer
from services.gpu_worker.events import (
    KvCommitted,
    KvDropped,
    KvOffered,
    PeerLost,
    PlanReceived,
    WorkerEvent,
)

ANSWER_NS = 5 * NS_PER_S
"""Longest wait for the core, which answers in microseconds unless the process is frozen."""


class PeerDesk:
    """The worker behind its peer network; every method is called on the event loop."""

    def __init__(self) -> None:
        self._post: Callable[[WorkerEvent], None] = _nobody_listens
        self._questions = 0
        self._answers: dict[str, asyncio.Future[tuple[tuple[int, int], ...]]] = {}

    def attach(self, post: Callable[[WorkerEvent], None]) -> None:
        """Bring everything before this mailbox from now on.

        Until then nothing of worth can come: peers speak of replicas that the core was told of.
        """
        self._post = post

    def answer(self, command: AnswerPeer) -> None:
        """Give the core's answer to whoever waits for it, if they still do."""
        waiting = self._answers.get(command.op_id)
        if waiting is not None and not waiting.done():
            waiting.set_result(command.blocks)

    def plan_received(self, *, replica_id: str, replica_epoch: int, plan: StepPlan) -> None:
        """Run this plan after all that came before it."""
        self._post(
            PlanReceived(
                replica_id=replica_id,
                replica_epoch=replica_epoch,
                plan=plan,
                cause_id=f"{replica_id}/{plan.step_id}",
            )
        )

    def peer_lost(
        self, *, replica_id: str, replica_epoch: int, worker_id: str, reason: str
    ) -> None:
        """Take the replica as broken."""
        self._post(
            PeerLost(
                replica_id=replica_id,
                replica_epoch=replica_epoch,
                worker_id=worker_id,
                reason=reason,
                cause_id=worker_id,
            )
        )

    async def kv_offered(
        self, *, replica_id: str, replica_epoch: int, ticket_id: str, hashes: tuple[int, ...]
    ) -> tuple[tuple[int, int], ...]:
        """Reserve a block for each hash that is wanted. Raises: Unavailable without an answer."""
        self._questions += 1
        op_id = f"offer-{self._questions}"
        waiting: asyncio.Future[tuple[tuple[int, int], ...]]
        waiting = asyncio.get_running_loop().create_future()
        self._answers[op_id] = waiting
        self._post(
            KvOffered(
                op_id=op_id,
                replica_id=replica_id,
                replica_epoch=replica_epoch,
                ticket_id=ticket_id,
                hashes=hashes,
                cause_id=ticket_id,
            )
        )
        try:
            async with asyncio.timeout(seconds(ANSWER_NS)):
                return await waiting
        except TimeoutError:
            raise Unavailable("the worker does not answer", retry_after_ns=NS_PER_S) from None
        finally:
            del self._answers[op_id]

    async def kv_committed(
        self, *, replica_id: str, replica_epoch: int, ticket_id: str, hashes: tuple[int, ...]
    ) -> None:
        """Let sessions find these blocks; those that come later than this call do."""
        self._post(
            KvCommitted(
                replica_id=replica_id,
                replica_epoch=replica_epoch,
                ticket_id=ticket_id,
                hashes=hashes,
                cause_id=ticket_id,
            )
        )

    async def kv_dropped(self, *, replica_id: str, replica_epoch: int, ticket_id: str) -> None:
        """Give back what is reserved and not committed."""
        self._post(
            KvDropped(
                replica_id=replica_id,
                replica_epoch=replica_epoch,
                ticket_id=ticket_id,
                cause_id=ticket_id,
            )
        )


def _nobody_listens(_event: WorkerEvent) -> None:
    """Drop an event."""
