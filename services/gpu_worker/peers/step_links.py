"""The link on which a replica's lead sends its plans to one member: both ends of it.

    connecting --StepsOpened--> open --silence, cut, failure, close()--> closed

Plans go unanswered, since the step itself is the answer; so either end listens for a sign of life
at least every `silence_ns`. What opens and closes the tickets of KV copies travels on the same
link, in order with the plans, and so does what all ranks copy to host memory and back.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Final, Protocol

from libs.contracts.peers import (
    BLOCKS_PER_BATCH_MAX,
    STEP_LINK,
    CarryPlan,
    CloseTicket,
    HostCopyEnded,
    LoadFromHost,
    MemberFailed,
    OpenSteps,
    OpenTicket,
    PeerAlive,
    StepLinkMessage,
    StepsOpened,
    StepsRefused,
    StoreToHost,
    TicketClosed,
    TicketOpened,
    YieldStep,
)
from libs.contracts.wire import encode
from libs.engine.steps import StepPlan
from libs.kernel.errors import ContractViolation, Unavailable
from libs.kernel.units import seconds
from libs.runtime.clock import Clock
from libs.transfer.transport import Connection, ConnectionLost, Message
from services.gpu_worker.peers.bodies import (
    pack_integers,
    pack_pairs,
    unpack_integers,
    unpack_pairs,
)
from services.gpu_worker.peers.plan_codec import STEP_PLANS
from services.gpu_worker.peers.ports import PeerOptions
from services.gpu_worker.peers.questions import RefusedByPeer
from services.gpu_worker.peers.store_gate import StoreGate

CARRY_PLAN: Final = encode(CarryPlan())


class LinkToMember:
    """The lead's end. `lost` is called once, unless `close` comes first."""

    def __init__(
        self,
        connection: Connection,
        *,
        clock: Clock,
        options: PeerOptions,
        lost: Callable[[str], None],
    ) -> None:
        self._connection = connection
        self._clock = clock
        self._options = options
        self._lost = lost
        self._sending = asyncio.Lock()
        self._answers: dict[StepLinkMessage, asyncio.Future[None]] = {}
        self._host_copies: dict[str, asyncio.Future[tuple[int, ...]]] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._alive_sent_at_ns = 0
        self.round_trip_ns: int | None = None
        """From the last sign of life to its answer, both loops included."""

    async def open(self, opening: OpenSteps) -> None:
        """Ask the member to take plans. Raises: RefusedByPeer, ConnectionLost."""
        answer_ns = self._options.answer_ns
        await self._connection.send(encode(opening), [], timeout_ns=answer_ns)
        message = await self._connection.receive(timeout_ns=answer_ns)
        match STEP_LINK.decode(message.header):
            case StepsOpened():
                watching = (self._hear, self._say_alive)
                self._tasks = [asyncio.create_task(self._watch(each)) for each in watching]
            case StepsRefused(reason=reason, message=text):
                raise RefusedByPeer(
                    reason=reason, message=text, peer_address=self._connection.peer_address
                )
            case answer:
                raise ContractViolation(f"{type(answer).__name__} in answer to OpenSteps")

    async def send_plan(self, packed: bytes) -> None:
        """Send a packed plan after all before it. Raises: ConnectionLost, PeerSilent."""
        await self._send(CARRY_PLAN, packed)

    async def ask_to_yield(self, step_id: int) -> None:
        """Have the member end this step early, if it can. Raises: ConnectionLost, PeerSilent."""
        await self._send(encode(YieldStep(step_id=step_id)))

    async def copy_host(
        self, question: StoreToHost | LoadFromHost, pairs: Sequence[tuple[int, int]]
    ) -> tuple[int, ...]:
        """Return, once the member has copied, the slots that it found changed.

        Raises: Unavailable if it could not; ConnectionLost, PeerSilent if it is lost, and with it
        all that reads its memory.
        """
        ended = self._host_copies[question.copy_id] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(seconds(self._options.piece_ns)):
                await self._send(encode(question), pack_pairs(pairs))
                return await asyncio.shield(ended)
        except TimeoutError as error:
            self._fail("silent for too long (host copy)")
            raise ConnectionLost(f"{self._connection.peer_address}: no answer") from error
        finally:
            self._host_copies.pop(question.copy_id, None)

    async def open_ticket(self, ticket_id: str) -> None:
        """Let the member store KV of this copy. Raises: ConnectionLost, PeerSilent."""
        question = OpenTicket(ticket_id=ticket_id)
        await self._ask(question, expected=TicketOpened(ticket_id=ticket_id))

    async def close_ticket(self, ticket_id: str) -> None:
        """Return when the member stores nothing of this copy. Raises: ConnectionLost, PeerSilent:
        then the member is lost, and with it all that it would compute from that memory."""
        question = CloseTicket(ticket_id=ticket_id)
        await self._ask(question, expected=TicketClosed(ticket_id=ticket_id))

    def close(self) -> None:
        """End the link without a word to anybody here."""
        self._end("closed")
        self._connection.close()

    async def _ask(
        self, question: OpenTicket | CloseTicket, *, expected: TicketOpened | TicketClosed
    ) -> None:
        answered = self._answers.setdefault(expected, asyncio.get_running_loop().create_future())
        try:
            async with asyncio.timeout(seconds(self._options.piece_ns)):
                await self._send(encode(question))
                await asyncio.shield(answered)
        except TimeoutError as error:
            self._fail("silent for too long (ticket)")
            raise ConnectionLost(f"{self._connection.peer_address}: no answer") from error

    async def _send(self, header: bytes, body: bytes = b"") -> None:
        async with self._sending:
            await self._connection.send(header, [body], timeout_ns=self._options.silence_ns)

    async def _watch(self, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except (Unavailable, ContractViolation) as error:
            self._fail(str(error))

    async def _hear(self) -> None:
        while True:
            message = await self._connection.receive(timeout_ns=self._options.silence_ns)
            match STEP_LINK.decode(message.header):
                case PeerAlive():
                    self.round_trip_ns = self._clock.now_ns() - self._alive_sent_at_ns
                case (TicketOpened() | TicketClosed()) as answer:
                    answered = self._answers.pop(answer, None)
                    if answered is not None and not answered.done():
                        answered.set_result(None)
                case HostCopyEnded() as ended:
                    self._host_copy_ended(ended, message.body)
                case MemberFailed(message=reason):
                    raise Unavailable(reason, retry_after_ns=self._options.alive_ns)
                case other:
                    raise ContractViolation(f"{type(other).__name__} from a member")

    def _host_copy_ended(self, ended: HostCopyEnded, body: memoryview) -> None:
        waiting = self._host_copies.get(ended.copy_id)
        if waiting is None or waiting.done():
            return
        if ended.failure:
            retry_after_ns = self._options.alive_ns
            waiting.set_exception(Unavailable(ended.failure, retry_after_ns=retry_after_ns))
        else:
            waiting.set_result(unpack_integers(body, integers_max=BLOCKS_PER_BATCH_MAX))

    async def _say_alive(self) -> None:
        number = 0
        while True:
            self._alive_sent_at_ns = self._clock.now_ns()
            await self._send(encode(PeerAlive(number=number)))
            number += 1
            await asyncio.sleep(seconds(self._options.alive_ns))

    def _fail(self, reason: str) -> None:
        if self._tasks:
            self.close()
            self._lost(reason)

    def _end(self, reason: str) -> None:
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            if task is not asyncio.current_task():
                task.cancel()
        waiting: list[asyncio.Future[None] | asyncio.Future[tuple[int, ...]]]
        waiting = [*self._answers.values(), *self._host_copies.values()]
        for answered in waiting:
            if not answered.done():
                answered.set_exception(ConnectionLost(reason))
        self._answers.clear()


class MemberOfReplica(Protocol):
    """What a lead asks of a member, beside the tickets of copies. Called on the event loop."""

    def plan_received(self, plan: StepPlan) -> None:
        """Run this plan after all that came before it."""

    def yield_asked(self, step_id: int) -> None:
        """End this step early, if that is still possible."""

    async def store_to_host(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy blocks into slots of host memory. Raises: Unavailable if that is not possible."""

    async def load_from_host(self, pairs: Sequence[tuple[int, int]]) -> tuple[int, ...]:
        """Copy slots into blocks; return those found changed. Raises: Unavailable."""


class LinkToLead:
    """A member's end: hands on plans in order, answers, and ends with ConnectionLost."""

    def __init__(
        self,
        connection: Connection,
        *,
        gate: StoreGate,
        options: PeerOptions,
        member: MemberOfReplica,
    ) -> None:
        self._connection = connection
        self._gate = gate
        self._options = options
        self._member = member
        self._sending = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self, *, worker_id: str) -> None:
        """Serve until the link ends. Raises: ConnectionLost, PeerSilent, ContractViolation."""
        await self._send(StepsOpened(worker_id=worker_id))
        try:
            while True:
                message = await self._connection.receive(timeout_ns=self._options.silence_ns)
                await self._serve_message(message)
        finally:
            for task in self._tasks:
                task.cancel()

    async def fail(self, reason: str) -> None:
        """Tell the lead that this member cannot go on."""
        with contextlib.suppress(Unavailable):
            await self._send(MemberFailed(message=reason[:1024]))

    def close(self) -> None:
        """End the link."""
        self._connection.close()

    async def _serve_message(self, message: Message) -> None:
        match STEP_LINK.decode(message.header):
            case CarryPlan():
                self._member.plan_received(STEP_PLANS.unpack(message.body))
            case YieldStep(step_id=step_id):
                self._member.yield_asked(step_id)
            case (StoreToHost() | LoadFromHost()) as question:
                # No plan may wait for a copy.
                pairs = unpack_pairs(message.body, pairs_max=BLOCKS_PER_BATCH_MAX)
                self._beside(self._copy_host(question, pairs))
            case PeerAlive() as alive:
                await self._send(alive)
            case OpenTicket(ticket_id=ticket_id):
                await self._open_ticket(ticket_id)
            case CloseTicket(ticket_id=ticket_id):
                # What is being stored waits for the engine, and no plan may wait for that.
                self._beside(self._close_ticket(ticket_id))
            case other:
                raise ContractViolation(f"{type(other).__name__} from a lead")

    def _beside(self, work: Coroutine[None, None, None]) -> None:
        """Do something while the link goes on."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _copy_host(
        self, question: StoreToHost | LoadFromHost, pairs: Sequence[tuple[int, int]]
    ) -> None:
        failure = ""
        corrupt: tuple[int, ...] = ()
        try:
            if isinstance(question, StoreToHost):
                await self._member.store_to_host(pairs)
            else:
                corrupt = await self._member.load_from_host(pairs)
        except Unavailable as error:
            failure = str(error)[:1024]
        with contextlib.suppress(Unavailable):
            answer = HostCopyEnded(copy_id=question.copy_id, failure=failure)
            await self._send(answer, pack_integers(corrupt))

    async def _open_ticket(self, ticket_id: str) -> None:
        # One too many stays unanswered: the lead bounds its tickets by the same number.
        if self._gate.open(ticket_id):
            await self._send(TicketOpened(ticket_id=ticket_id))

    async def _close_ticket(self, ticket_id: str) -> None:
        await self._gate.close(ticket_id)
        # If the link is lost, `serve` ends for the same reason.
        with contextlib.suppress(Unavailable):
            await self._send(TicketClosed(ticket_id=ticket_id))

    async def _send(self, message: StepLinkMessage, body: bytes = b"") -> None:
        async with self._sending:
            parts = [body] if body else []
            await self._connection.send(encode(message), parts, timeout_ns=self._options.silence_ns)
