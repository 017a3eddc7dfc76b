"""Connections to peers for questions and for transfers, kept open between uses.

A link is lent to one user at a time. One that was used without an error goes back and is lent again,
so that a peer that was asked before is reached without a new connection; `connect_ahead` makes the
first ones before they are needed.
"""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from enum import StrEnum
from typing import TypeVar

from libs.contracts.peers import PEER_ANSWERS, PeerQuestion, PeerRefusal, PeerRefused
from libs.contracts.transfers import IntroducePeer
from libs.contracts.wire import Message, encode
from libs.kernel.errors import ContractViolation, Unavailable
from libs.kernel.units import NS_PER_MS
from libs.transfer.transport import Connection, Transport
from services.gpu_worker.peers.ports import PeerOptions

AnswerT = TypeVar("AnswerT", bound=Message)
ASK_AGAIN_NS = 100 * NS_PER_MS


class Purpose(StrEnum):
    """What a connection is for; the first thing that is said on it."""

    STEPS = "steps"
    EXCHANGE = "exchange"
    TRANSFER = "transfer"


class RefusedByPeer(Unavailable):
    """The peer answered that it does not do what was asked."""

    def __init__(self, refused: PeerRefused, *, peer_address: str) -> None:
        text = f"{peer_address}: {refused.reason}"
        super().__init__(
            f"{text} ({refused.message})" if refused.message else text,
            retry_after_ns=ASK_AGAIN_NS,
        )
        self.reason: PeerRefusal = refused.reason


async def connect(
    transport: Transport, address: str, *, worker_id: str, purpose: Purpose, timeout_ns: int
) -> Connection:
    """Return a new connection on which this worker is introduced.

    Raises: PeerUnreachable, ConnectionLost.
    """
    connection = await transport.connect(address, timeout_ns=timeout_ns)
    introduction = IntroducePeer(peer_id=worker_id, purpose=purpose.value)
    await connection.send(encode(introduction), [], timeout_ns=timeout_ns)
    return connection


class ExchangeLinks:
    """The links that this worker has opened."""

    def __init__(self, *, worker_id: str, transport: Transport, options: PeerOptions) -> None:
        self._worker_id = worker_id
        self._transport = transport
        self._options = options
        self._idle: defaultdict[tuple[str, Purpose], list[Connection]] = defaultdict(list)
        self._is_closed = False

    @asynccontextmanager
    async def lend(self, address: str, purpose: Purpose) -> AsyncIterator[Connection]:
        """Lend a link to this peer. An error within the block closes it, unless it is a refusal.

        Raises: PeerUnreachable, ConnectionLost.
        """
        connection = self._take_idle(address, purpose) or await self._connect(address, purpose)
        try:
            yield connection
        except RefusedByPeer:
            self._give_back(address, purpose, connection)
            raise
        except BaseException:
            # The other links to this peer may be as dead, if it is the peer that has gone.
            connection.close()
            self._close_idle(address)
            raise
        self._give_back(address, purpose, connection)

    async def connect_ahead(self, addresses: Iterable[str]) -> None:
        """Connect to each of these that no idle link leads to; who cannot be reached is left."""
        wanted = [(address, purpose) for address in addresses for purpose in _LENT]
        await asyncio.gather(
            *(self._connect_one_ahead(*key) for key in wanted if not self._idle[key])
        )

    def close(self) -> None:
        """Close the idle links; those that are lent close when they come back."""
        self._is_closed = True
        for address, _ in list(self._idle):
            self._close_idle(address)

    async def _connect(self, address: str, purpose: Purpose) -> Connection:
        return await connect(
            self._transport,
            address,
            worker_id=self._worker_id,
            purpose=purpose,
            timeout_ns=self._options.connect_ns,
        )

    async def _connect_one_ahead(self, address: str, purpose: Purpose) -> None:
        try:
            self._give_back(address, purpose, await self._connect(address, purpose))
        except (Unavailable, ContractViolation):
            return  # It is tried again, and then reported, when the peer is needed.

    def _take_idle(self, address: str, purpose: Purpose) -> Connection | None:
        idle = self._idle[address, purpose]
        while idle:
            connection = idle.pop()
            if not connection.is_closed:
                return connection
        return None

    def _close_idle(self, address: str) -> None:
        for purpose in _LENT:
            for connection in self._idle.pop((address, purpose), []):
                connection.close()

    def _give_back(self, address: str, purpose: Purpose, connection: Connection) -> None:
        idle = self._idle[address, purpose]
        if self._is_closed or connection.is_closed or len(idle) >= self._options.links_idle_max:
            connection.close()
        else:
            idle.append(connection)


_LENT = (Purpose.EXCHANGE, Purpose.TRANSFER)


async def ask(
    link: Connection,
    question: PeerQuestion,
    answer_type: type[AnswerT],
    *,
    body: bytes = b"",
    timeout_ns: int,
) -> tuple[AnswerT, memoryview]:
    """Ask on an exchange link and return the answer with its body.

    `timeout_ns` bounds the sending and the wait for the answer, each.

    Raises: RefusedByPeer; ConnectionLost, PeerSilent; ContractViolation for any other answer.
    """
    await link.send(encode(question), [body], timeout_ns=timeout_ns)
    message = await link.receive(timeout_ns=timeout_ns)
    answer = PEER_ANSWERS.decode(message.header)
    if isinstance(answer, PeerRefused):
        raise RefusedByPeer(answer, peer_address=link.peer_address)
    if not isinstance(answer, answer_type):
        raise ContractViolation(f"{type(answer).__name__} in answer to {type(question).__name__}")
    return answer, message.body


