"""A source in a process of its own, to be killed: sends the same pieces as the test would."""

import asyncio
import sys

from libs.kernel.units import NS_PER_S
from libs.transfer.opening import open_transport
from libs.transfer.sending import send_transfer
from tests.integration.transfer.memory_ends import MemorySource, a_ticket

SIZES = (64 * 1024,) * 400


async def main(kind: str, address: str) -> None:
    transport = open_transport(kind, host="127.0.0.1")  # type: ignore[arg-type]
    connection = await transport.connect(address, timeout_ns=10 * NS_PER_S)
    source = MemorySource(SIZES)
    await send_transfer(connection, ticket=a_ticket(), pieces=source.pieces, fill=source.fill)
    await transport.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2]))
