"""Gigabytes per second between two processes: a KV transfer beside what bounds it.

    python -m benchmarks.transfer --json FILE

Five paths move the same bytes, in turns, so that a noisy machine disturbs all alike; a row is the
median of its turns.

- `transfer`      scattered blocks of 32 KiB by `send_transfer`, cut as a worker cuts its KV: each
                  piece has as many blocks as fit a buffer; checked, acknowledged, resumable
- `block_pieces`  the same, but each block is a piece of its own
- `reference`     the same gather, checksum, scatter, buffers and transport in a bare loop
- `socket`        a blocking socket without gather or checksum, one message of the whole size
- `ucx_perftest`  UCX's own tool over TCP, from one process to itself, where it is installed

`ratio_to_reference` is what the care of a transfer costs; from 16 MiB on that of `transfer` should
be 0.9 at least. What bounds it: each byte is copied twice to gather and to scatter it, twice by the
kernel, and read twice for its checksums, on two cores. `loopback` is one process, so one core.
"""

import asyncio
import json
import socket
import statistics
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Final, get_args
from urllib.parse import urlsplit

import xxhash

from benchmarks.provenance import provenance, record_parser, write_record
from benchmarks.transfer_peer import ReceivingPeer
from benchmarks.transfer_pool import (
    BLOCK_BYTES,
    KV_PIECE_BYTES,
    REFERENCE_DONE,
    BlockPool,
    PiecesOfBlocks,
    pack_reference,
)
from benchmarks.ucx_tool import measure_ucx_tool
from libs.kernel.units import KIB, MIB, NS_PER_S
from libs.transfer.opening import TransportKind, open_transport
from libs.transfer.sending import send_transfer
from libs.transfer.staging import StagingPool
from libs.transfer.ticket import DEFAULT_OPTIONS, TransferTicket
from libs.transfer.transport import Connection

SIZES: Final = (64 * KIB, 256 * KIB, 1 * MIB, 4 * MIB, 16 * MIB, 64 * MIB)
TURN_BYTES: Final = 32 * MIB
"""A turn repeats a smaller transfer until it has moved this much, or TURN_REPEATS_MAX times."""
TURN_REPEATS_MAX: Final = 64
LIMIT_NS: Final = 10 * NS_PER_S
PIECES: Final = {"transfer": KV_PIECE_BYTES, "block_pieces": BLOCK_BYTES}
"""The paths that are transfers, and the size of their pieces."""

Send = Callable[[int], Awaitable[None]]
Report = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkOptions:
    """What to measure."""

    transports: tuple[TransportKind, ...] = ("tcp", "ucx", "loopback")
    sizes: tuple[int, ...] = SIZES
    turns: int = 9


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferRow:
    """One line of the table."""

    transport: str
    path: str
    bytes: int
    messages: int
    gb_s: float
    gb_s_all: tuple[float, ...] = ()
    ratio_to_reference: float | None = None


class Sender:
    """The sending ends of the paths, over one transport."""

    def __init__(self, connections: dict[str, Connection], plain: socket.socket | None) -> None:
        self._pool = BlockPool()
        self._connections = connections
        self._plain = plain
        self._staging = StagingPool()
        self._reference_staging = bytearray(DEFAULT_OPTIONS.buffer_bytes_max)
        self._tickets = 0

    def paths(self) -> dict[str, Send]:
        """Return what can be measured."""
        paths: dict[str, Send] = {
            "reference": self._send_reference,
            **{name: partial(self._transfer, piece_bytes) for name, piece_bytes in PIECES.items()},
        }
        return paths if self._plain is None else {"socket": self._send_plain, **paths}

    async def _transfer(self, piece_bytes: int, size: int) -> None:
        self._tickets += 1
        pieces = PiecesOfBlocks(pool=self._pool, piece_bytes=piece_bytes)
        await send_transfer(
            self._connections["transfer"],
            ticket=TransferTicket(ticket_id=f"{piece_bytes}/{self._tickets}", replica_epoch=0),
            pieces=pieces.listed(size),
            fill=pieces.fill,
            staging=self._staging,
        )

    async def _send_reference(self, size: int) -> None:
        connection = self._connections["reference"]
        staging = memoryview(self._reference_staging)
        for start in range(0, size, len(staging)):
            buffer = staging[: size - start]
            first_block = start // BLOCK_BYTES
            self._pool.gather(first_block, buffer)
            header = pack_reference(xxhash.xxh3_64_intdigest(buffer), first_block)
            await connection.send(header, [buffer], timeout_ns=LIMIT_NS)
        await connection.send(REFERENCE_DONE, [], timeout_ns=LIMIT_NS)
        await connection.receive(timeout_ns=LIMIT_NS)

    async def _send_plain(self, size: int) -> None:
        assert self._plain is not None
        self._plain.sendall(size.to_bytes(8, "big"))
        self._plain.sendall(self._pool.plain(size))
        self._plain.recv(1)


def measure(options: BenchmarkOptions, *, report: Report) -> dict[str, object]:
    """Measure every transport and return the record to be written."""
    rows: list[TransferRow] = []
    for kind in options.transports:
        rows += asyncio.run(_measure_transport(kind, options, report))
    if "ucx" in options.transports:
        rows += [
            TransferRow(transport="ucx", path="ucx_perftest", bytes=size, messages=1, gb_s=gb_s)
            for size, gb_s in measure_ucx_tool(options.sizes)
        ]
    return {
        **provenance("benchmarks.transfer"),
        "options": asdict(options),
        "rows": [asdict(row) for row in rows],
    }


async def _measure_transport(
    kind: TransportKind, options: BenchmarkOptions, report: Report
) -> list[TransferRow]:
    rows: list[TransferRow] = []
    async with _sender(kind) as sender:
        for size in options.sizes:
            turns: dict[str, list[float]] = {name: [] for name in sender.paths()}
            for run in sender.paths().values():
                await run(size)
            for number in range(options.turns):
                names = list(turns)
                # Whoever is first meets other caches than whoever is last: the order rotates.
                for name in names[number % len(names) :] + names[: number % len(names)]:
                    turns[name].append(await _take_turn(sender.paths()[name], size))
            rows += [_row(kind, name, size, turns) for name in turns]
            shown = ", ".join(f"{row.path} {row.gb_s:.2f}" for row in rows[-len(turns) :])
            report(f"{kind} {size // KIB} KiB, GB/s: {shown}")
    return rows


async def _take_turn(run: Send, size: int) -> float:
    """Return the gigabytes per second of one turn."""
    repeats = max(1, min(TURN_BYTES // size, TURN_REPEATS_MAX))
    started_at_ns = time.perf_counter_ns()
    for _ in range(repeats):
        await run(size)
    return repeats * size / (time.perf_counter_ns() - started_at_ns)


def _row(kind: str, name: str, size: int, turns: dict[str, list[float]]) -> TransferRow:
    pairs = zip(turns[name], turns["reference"], strict=True)
    ratio = statistics.median(own / reference for own, reference in pairs)
    return TransferRow(
        transport=kind,
        path=name,
        bytes=size,
        messages=1 if name == "socket" else -(-size // DEFAULT_OPTIONS.buffer_bytes_max),
        gb_s=round(statistics.median(turns[name]), 3),
        gb_s_all=tuple(round(turn, 3) for turn in turns[name]),
        ratio_to_reference=None if name == "reference" else round(ratio, 3),
    )


@asynccontextmanager
async def _sender(kind: TransportKind) -> AsyncIterator[Sender]:
    """Connect to a receiving process; over loopback, to a receiver in this one."""
    transport = open_transport(kind, host="127.0.0.1")
    try:
        if kind == "loopback":
            listeners = await ReceivingPeer(BlockPool()).listen(transport)
            addresses = {path: listener.address for path, listener in listeners.items()}
            connections = {
                path: await transport.connect(address, timeout_ns=LIMIT_NS)
                for path, address in addresses.items()
            }
            yield Sender(connections, None)
            return
        async with _peer_process(kind) as addresses:
            plain = urlsplit(addresses.pop("socket"))
            connections = {
                path: await transport.connect(address, timeout_ns=LIMIT_NS)
                for path, address in addresses.items()
            }
            with socket.create_connection((plain.hostname, plain.port)) as sock:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                yield Sender(connections, sock)
    finally:
        await transport.close()


@asynccontextmanager
async def _peer_process(kind: TransportKind) -> AsyncIterator[dict[str, str]]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "benchmarks.transfer_peer", kind, stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        addresses: dict[str, str] = json.loads(await process.stdout.readline())
        yield addresses
    finally:
        process.kill()
        await process.wait()


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print each size to stderr, and write the JSON record."""
    parser = record_parser(__doc__)
    defaults = BenchmarkOptions()
    parser.add_argument("--turns", type=int, default=defaults.turns)
    parser.add_argument("--kib", type=int, action="append", help="size; repeatable")
    kinds = [kind for kind in get_args(TransportKind) if kind != "auto"]
    parser.add_argument("--transport", choices=kinds, action="append", help="repeatable")
    given = parser.parse_args(arguments)
    options = BenchmarkOptions(
        transports=tuple(given.transport or defaults.transports),
        sizes=tuple(size * KIB for size in given.kib) if given.kib else defaults.sizes,
        turns=given.turns,
    )
    record = measure(options, report=lambda line: print(line, file=sys.stderr, flush=True))
    write_record(record, given.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
