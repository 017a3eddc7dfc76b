"""Which copies may be stored to one position now, and what is being stored.

    open --close()--> closing --the last store has ended--> closed

A store begins only while its ticket is open, and `close` returns only when none is under way: after
it nothing of the copy is ever written, however late it arrives, and its blocks can go to others.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from libs.kernel.errors import Unavailable
from libs.kernel.units import NS_PER_MS

RETRY_AFTER_NS = 100 * NS_PER_MS


@dataclass(slots=True)
class _Ticket:
    stores: int = 0
    is_open: bool = True
    quiet: asyncio.Event = field(default_factory=asyncio.Event)
    """Set while nothing is being stored."""

    def __post_init__(self) -> None:
        self.quiet.set()


class StoreGate:
    """The tickets of one position."""

    def __init__(self, *, tickets_max: int) -> None:
        self._tickets_max = tickets_max
        self._tickets: dict[str, _Ticket] = {}

    def open(self, ticket_id: str) -> bool:
        """Let this copy be stored; False if too many are. Repeating it is safe."""
        if ticket_id not in self._tickets and len(self._tickets) >= self._tickets_max:
            return False
        self._tickets.setdefault(ticket_id, _Ticket())
        return True

    def is_open(self, ticket_id: str) -> bool:
        """Whether this copy may be stored."""
        ticket = self._tickets.get(ticket_id)
        return ticket is not None and ticket.is_open

    @asynccontextmanager
    async def storing(self, ticket_id: str) -> AsyncIterator[None]:
        """Hold the ticket while something of it is stored. Raises: Unavailable if it is closed."""
        ticket = self._tickets.get(ticket_id)
        if ticket is None or not ticket.is_open:
            raise Unavailable(f"copy {ticket_id} has ended", retry_after_ns=RETRY_AFTER_NS)
        ticket.stores += 1
        ticket.quiet.clear()
        try:
            yield
        finally:
            ticket.stores -= 1
            if not ticket.stores:
                ticket.quiet.set()

    async def close(self, ticket_id: str) -> None:
        """Store nothing more of this copy; return when nothing is under way."""
        ticket = self._tickets.get(ticket_id)
        if ticket is None:
            return
        ticket.is_open = False
        await ticket.quiet.wait()
        # Another close of the same ticket may have been first, and an opening have come since.
        if self._tickets.get(ticket_id) is ticket:
            del self._tickets[ticket_id]

    def shut(self) -> None:
        """Store nothing more of any copy that is open now."""
        for ticket in self._tickets.values():
            ticket.is_open = False

    async def close_all(self) -> None:
        """As `shut`; return when nothing is under way."""
        self.shut()
        for ticket_id in list(self._tickets):
            await self.close(ticket_id)
