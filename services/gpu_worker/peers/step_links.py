"""The link on which a replica's lead sends its plans to one member: both ends of it.

    connecting --StepsOpened--> open --silence, cut, failure, close()--> closed

Plans go unanswered, since the step itself is the answer; so either end listens for a sign of life
at least every `silence_ns`. What opens and closes the tickets of KV copies travels on the same
link, in order with the plans.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Final

from libs.contracts.peers import (
    STEP_LINK,
    CarryPlan,
    CloseTicket,
    MemberFailed,
    OpenSteps,
    OpenTicket,
    PeerAlive,
    StepLinkMessage,
    StepsOpened,
    StepsRefused,
    TicketClosed,
    TicketOpened,
)
from libs.contracts.wire import encode
from libs.engine.steps import StepPlan
from libs.kernel.errors import ContractViolation, Unavailable
from libs.kernel.units import seconds
from libs.runtime.clock import Clock
from libs.transfer.transport import Connection, ConnectionLost, Message
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
                case MemberFailed(message=reason):
                    raise Unavailable(reason, retry_after_ns=self._options.alive_ns)
                case other:
                    raise ContractViolation(f"{type(other).__name__} from a member")

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
        for answered in self._answers.values():
            if not answered.done():
                answered.set_exception(ConnectionLost(reason))
        self._answers.clear()


class LinkToLead:
    """A member's end: hands on plans in order, answers, and ends with ConnectionLost."""

    def __init__(
        self,
        connection: Connection,
        *,
        gate: StoreGate,
        options: PeerOptions,
        plan_received: Callable[[StepPlan], None],
    ) -> None:
        self._connection = connection
        self._gate = gate
        self._options = options
        self._plan_received = plan_received
        self._sending = asyncio.Lock()
        self._closings: set[asyncio.Task[None]] = set()

    async def serve(self, *, worker_id: str) -> None:
        """Serve until the link ends. Raises: ConnectionLost, PeerSilent, ContractViolation."""
        await self._send(StepsOpened(worker_id=worker_id))
        try:
            while True:
                message = await self._connection.receive(timeout_ns=self._options.silence_ns)
                await self._serve_message(message)
        finally:
            for closing in self._closings:
                closing.cancel()

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
                self._plan_received(STEP_PLANS.unpack(message.body))
            case PeerAlive() as alive:
                await self._send(alive)
            case OpenTicket(ticket_id=ticket_id):
                await self._open_ticket(ticket_id)
            case CloseTicket(ticket_id=ticket_id):
                # What is being stored waits for the engine, and no plan may wait for that.
                closing = asyncio.create_task(self._close_ticket(ticket_id))
                self._closings.add(closing)
                closing.add_done_callback(self._closings.discard)
            case other:
                raise ContractViolation(f"{type(other).__name__} from a lead")

    async def _open_ticket(self, ticket_id: str) -> None:
        # One too many stays unanswered: the lead bounds its tickets by the same number.
        if self._gate.open(ticket_id):
            await self._send(TicketOpened(ticket_id=ticket_id))

    async def _close_ticket(self, ticket_id: str) -> None:
        await self._gate.close(ticket_id)
        # If the link is lost, `serve` ends for the same reason.
        with contextlib.suppress(Unavailable):
            await self._send(TicketClosed(ticket_id=ticket_id))

    async def _send(self, message: StepLinkMessage) -> None:
        async with self._sending:
            await self._connection.send(encode(message), [], timeout_ns=self._options.silence_ns)
