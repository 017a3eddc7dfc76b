"""Both ends of a transfer in memory: a source of scattered bytes and a sink that remembers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from libs.kernel.errors import Unavailable
from libs.kernel.rng import Rng
from libs.transfer.ticket import Piece, TransferTicket


def a_ticket(*, ticket_id: str = "kv/1", replica_epoch: int = 1) -> TransferTicket:
    return TransferTicket(ticket_id=ticket_id, replica_epoch=replica_epoch)


class MemorySource:
    """Pieces of the sizes given, numbered from 100 so that an index is never a position."""

    def __init__(self, sizes: Sequence[int], *, seed: int = 1) -> None:
        rng = Rng(seed)
        self.pieces = tuple(
            Piece(piece_index=100 + number, bytes=size) for number, size in enumerate(sizes)
        )
        self.content = {p.piece_index: rng.randbytes(p.bytes) for p in self.pieces}
        self.filled: list[int] = []

    def fill(self, piece_index: int, target: memoryview) -> None:
        self.filled.append(piece_index)
        target[:] = self.content[piece_index]


@dataclass
class MemorySink:
    """Stores pieces. `before_take` may delay or fail; `epoch` may move on."""

    epoch: int = 1
    before_take: Callable[[int], None] = lambda _: None
    content: dict[int, bytes] = field(default_factory=dict)
    taken: list[int] = field(default_factory=list)
    bytes_max: int | None = None

    def is_current(self, ticket: TransferTicket) -> bool:
        return ticket.replica_epoch == self.epoch

    def take(self, piece_index: int, data: memoryview) -> None:
        self.before_take(piece_index)
        held = sum(map(len, self.content.values()))
        if self.bytes_max is not None and held + len(data) > self.bytes_max:
            raise Unavailable("no room", retry_after_ns=1)
        self.taken.append(piece_index)
        self.content[piece_index] = bytes(data)
