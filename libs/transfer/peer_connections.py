"""Links to peers, made before they are needed, kept, made again, and measured.

One connection per peer address and purpose, lent to one user at a time; others wait their turn.
Making a UCX connection takes tenths of a second, which a preemption notice does not leave.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

import structlog

from libs.contracts.transfers import IntroducePeer
from libs.contracts.wire import encode
from libs.kernel.core import require
from libs.kernel.errors import ContractViolation, Unavailable
from libs.kernel.units import NS_PER_MS, NS_PER_S, seconds
from libs.transfer.link_rates import LinkRates
from libs.transfer.sending import send_transfer
from libs.transfer.staging import StagingPool
from libs.transfer.ticket import (
    DEFAULT_OPTIONS,
    Fill,
    Piece,
    TransferOptions,
    TransferSummary,
    TransferTicket,
)
from libs.transfer.transport import Connection, ConnectionLost, PeerUnreachable, Transport

LINKS_MAX: Final = 1024
"""More are an InvariantViolation: whoever asks for them forgets to `forget`."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkOptions:
    """How hard to try."""

    connect_ns: int = 2 * NS_PER_S
    """Longest time of one attempt."""
    pause_min_ns: int = 20 * NS_PER_MS
    pause_max_ns: int = 500 * NS_PER_MS
    """The pause between attempts doubles from the first to this: longer ones would waste the grace
    of a preemption, shorter ones the time of a peer that is starting."""


@dataclass(slots=True)
class _Link:
    """One peer for one purpose."""

    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    connection: Connection | None = None
    connecting_ahead: asyncio.Task[None] | None = None


class PeerConnections:
    """The connections that one worker makes. `rates` learns from every transfer, by address."""

    def __init__(
        self,
        own_id: str,
        transport: Transport,
        *,
        rates: LinkRates | None = None,
        options: LinkOptions | None = None,
    ) -> None:
        self.rates = rates or LinkRates()
        self._own_id = own_id
        self._transport = transport
        self._options = options or LinkOptions()
        self._links: dict[tuple[str, str], _Link] = {}
        self._staging = StagingPool()

    def connect_ahead(self, address: str, *, purpose: str) -> None:
        """Have a connection ready soon; goes on trying until `forget` if nobody answers."""
        link = self._link(address, purpose)
        if link.connecting_ahead is None or link.connecting_ahead.done():
            link.connecting_ahead = asyncio.create_task(self._make_ready(link, address, purpose))

    def is_ready(self, address: str, *, purpose: str) -> bool:
        """Whether a connection stands, as far as this side knows."""
        link = self._links.get((address, purpose))
        return link is not None and link.connection is not None and not link.connection.is_closed

    @asynccontextmanager
    async def borrow(
        self, address: str, *, purpose: str, timeout_ns: int
    ) -> AsyncIterator[Connection]:
        """Lend the connection, made now if there is none, for as long as the block runs.

        Raises: PeerUnreachable if none could be made, or had, within the time limit.
        """
        link = self._link(address, purpose)
        try:
            async with asyncio.timeout(seconds(timeout_ns)):
                await link.turn.acquire()
                try:
                    connection = await self._connected(link, address, purpose)
                except BaseException:
                    link.turn.release()
                    raise
        except TimeoutError as error:
            raise PeerUnreachable(f"{address}: no connection for {purpose} in time") from error
        try:
            yield connection
        finally:
            link.turn.release()

    async def send_transfer(
        self,
        address: str,
        *,
        purpose: str,
        ticket: TransferTicket,
        pieces: Sequence[Piece],
        fill: Fill,
        timeout_ns: int,
        executor: Executor | None = None,
        options: TransferOptions = DEFAULT_OPTIONS,
    ) -> TransferSummary:
        """Send a transfer; after a cut connect again and go on, until the time limit.

        Raises: Unavailable (which kind says why) when the time is up or the receiver refuses;
        see `send_transfer` of libs/transfer/sending.py.
        """
        loop = asyncio.get_running_loop()
        ends_at = loop.time() + seconds(timeout_ns)
        pauses = self._pauses()
        while True:
            remaining_ns = round((ends_at - loop.time()) * NS_PER_S)
            try:
                async with (
                    self.borrow(address, purpose=purpose, timeout_ns=remaining_ns) as connection,
                    asyncio.timeout_at(ends_at),
                ):
                    summary = await send_transfer(
                        connection,
                        ticket=ticket,
                        pieces=pieces,
                        fill=fill,
                        executor=executor,
                        staging=self._staging,
                        options=options,
                    )
            except TimeoutError as error:
                raise ConnectionLost(f"{address}: transfer {ticket.ticket_id} timed out") from error
            except ConnectionLost as error:
                _log.warning("transfer_cut", ticket_id=ticket.ticket_id, reason=str(error))
                await asyncio.sleep(next(pauses))
                continue
            self.rates.observe(address, bytes_moved=summary.bytes, duration_ns=summary.duration_ns)
            return summary

    def forget(self, address: str) -> None:
        """Close the connections to this address, and make none until asked again."""
        for key in [key for key in self._links if key[0] == address]:
            _drop(self._links.pop(key))
        self.rates.forget(address)

    async def close(self) -> None:
        """Close every connection. Repeating it is safe."""
        links, self._links = list(self._links.values()), {}
        for link in links:
            _drop(link)
        ahead = [link.connecting_ahead for link in links if link.connecting_ahead is not None]
        await asyncio.gather(*ahead, return_exceptions=True)

    def _link(self, address: str, purpose: str) -> _Link:
        key = (address, purpose)
        if key not in self._links:
            require(len(self._links) < LINKS_MAX, f"over {LINKS_MAX} links")
            self._links[key] = _Link()
        return self._links[key]

    async def _make_ready(self, link: _Link, address: str, purpose: str) -> None:
        try:
            async with link.turn:
                await self._connected(link, address, purpose)
        except ContractViolation as error:
            _log.error("peer_refused", address=address, purpose=purpose, reason=str(error))

    async def _connected(self, link: _Link, address: str, purpose: str) -> Connection:
        """Return the link's connection, trying until there is one. Its turn must be held."""
        pauses = self._pauses()
        while link.connection is None or link.connection.is_closed:
            try:
                link.connection = await self._connect(address, purpose)
            except Unavailable as error:
                _log.info("connect_failed", address=address, purpose=purpose, reason=str(error))
                await asyncio.sleep(next(pauses))
        return link.connection

    async def _connect(self, address: str, purpose: str) -> Connection:
        limit_ns = self._options.connect_ns
        connection = await self._transport.connect(address, timeout_ns=limit_ns)
        introduction = IntroducePeer(peer_id=self._own_id, purpose=purpose)
        await connection.send(encode(introduction), [], timeout_ns=limit_ns)
        return connection

    def _pauses(self) -> Iterator[float]:
        """Yield the pauses between attempts, in seconds."""
        pause_ns = self._options.pause_min_ns
        while True:
            yield seconds(pause_ns)
            pause_ns = min(2 * pause_ns, self._options.pause_max_ns)


def _drop(link: _Link) -> None:
    if link.connecting_ahead is not None:
        link.connecting_ahead.cancel()
    if link.connection is not None:
        link.connection.close()
