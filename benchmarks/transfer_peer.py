"""The receiving process of the transfer benchmark: one listener for each path that is measured."""

import asyncio
import json
import socket
import sys
import threading

import xxhash

from benchmarks.transfer_pool import (
    REFERENCE_DONE,
    BlockPool,
    pieces_of_ticket,
    unpack_reference,
)
from libs.kernel.units import NS_PER_S
from libs.transfer.opening import TransportKind, open_transport
from libs.transfer.receiving import TransferInbox
from libs.transfer.transport import Connection, Listener, Transport

ANSWER_NS = 10 * NS_PER_S


class ReceivingPeer:
    """Receives by either path into one pool."""

    def __init__(self, pool: BlockPool) -> None:
        self._pool = pool
        self._inbox = TransferInbox(
            open_sink=lambda ticket: pieces_of_ticket(pool, ticket.ticket_id),
            received=lambda _: None,
        )

    async def listen(self, transport: Transport) -> dict[str, Listener]:
        """Listen once for each path."""
        return {
            "transfer": await transport.listen(self._inbox.serve),
            "reference": await transport.listen(self._serve_reference),
        }

    async def _serve_reference(self, connection: Connection) -> None:
        """The same checks and copies as the inbox, and nothing else: one buffer after the other."""
        staging = bytearray()

        def allocate(_: bytes, size: int) -> memoryview:
            nonlocal staging
            if len(staging) < size:
                staging = bytearray(size)
            return memoryview(staging)[:size]

        while True:
            message = await connection.receive(allocate=allocate)
            if message.header == REFERENCE_DONE:
                await connection.send(REFERENCE_DONE, [], timeout_ns=ANSWER_NS)
                continue
            checksum, first_block = unpack_reference(message.header)
            if xxhash.xxh3_64_intdigest(message.body) != checksum:
                raise RuntimeError("corrupted on loopback")
            self._pool.scatter(first_block, message.body)


def serve_sockets(listening: socket.socket) -> None:
    """Answer each message on plain blocking sockets with one byte, for ever."""
    while True:
        connection, _ = listening.accept()
        with connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while lengths := connection.recv(8, socket.MSG_WAITALL):
                remaining = memoryview(bytearray(int.from_bytes(lengths, "big")))
                while remaining.nbytes:
                    remaining = remaining[connection.recv_into(remaining) :]
                connection.sendall(b"k")


async def main(kind: TransportKind) -> None:
    """Listen, print where as one line of JSON, and serve until the parent ends this process."""
    transport = open_transport(kind, host="127.0.0.1")
    listeners = await ReceivingPeer(BlockPool()).listen(transport)
    plain = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=serve_sockets, args=(plain,), daemon=True).start()
    addresses = {path: listener.address for path, listener in listeners.items()}
    addresses["socket"] = f"tcp://127.0.0.1:{plain.getsockname()[1]}"
    print(json.dumps(addresses), flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))  # type: ignore[arg-type]
