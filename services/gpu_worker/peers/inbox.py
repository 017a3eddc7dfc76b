"""Receives the transfers that this worker expects, each into its own sink."""

from concurrent.futures import Executor
from typing import Final

from libs.kernel.bounded import RecentMap
from libs.transfer.receiving import TransferInbox
from libs.transfer.ticket import Sink
from libs.transfer.transport import Connection

EXPECTED_MAX: Final = 1024
"""Transfers expected at a time; past it the oldest is expected no longer, and refused."""


class Inbox:
    """Knows the sink of each expected transfer; what nobody expects is refused."""

    def __init__(self, *, executor: Executor) -> None:
        self._sinks: RecentMap[str, Sink] = RecentMap(entries_max=EXPECTED_MAX)
        self._transfers = TransferInbox(
            open_sink=lambda ticket: self._sinks.get(ticket.ticket_id),
            # A sink stays expected when all has arrived: if the last answer was lost, the source
            # asks again and learns that nothing is missing.
            received=lambda ticket: None,
            executor=executor,
        )

    def expect(self, transfer_id: str, sink: Sink) -> None:
        """Take this transfer from now on, from its beginning."""
        self._transfers.forget(transfer_id)
        self._sinks.put(transfer_id, sink)

    def forget(self, transfer_id: str) -> None:
        """Expect this transfer no longer."""
        self._sinks.pop(transfer_id)

    async def serve(self, connection: Connection) -> None:
        """Receive what is offered on this connection until it ends. Raises: as TransferInbox."""
        await self._transfers.serve(connection)
