"""A peer in a process of its own: prints its address, then serves what a message's header asks."""

import asyncio
import sys

from libs.kernel.units import NS_PER_S
from libs.transfer.opening import open_transport
from libs.transfer.transport import Connection

ANSWER_NS = 30 * NS_PER_S


class EchoPeer:
    """Answers each message with itself, reads no more after `deaf`, ends after `leave`."""

    def __init__(self) -> None:
        self.may_listen_again = asyncio.Event()
        self.connections: list[Connection] = []

    async def serve(self, connection: Connection) -> None:
        self.connections.append(connection)
        while True:
            message = await connection.receive()
            match message.header:
                case b"deaf":
                    await self.may_listen_again.wait()
                case b"hear":
                    self.may_listen_again.set()
                case b"leave":
                    return
                case header:
                    await connection.send(header, [message.body], timeout_ns=ANSWER_NS)


async def main(kind: str) -> None:
    transport = open_transport(kind, host="127.0.0.1")  # type: ignore[arg-type]
    listener = await transport.listen(EchoPeer().serve)
    print(listener.address, flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
