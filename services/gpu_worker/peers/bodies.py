"""The long lists of peer messages, which travel as bodies: hashes, blocks, slices of weights."""

import struct
from collections.abc import Sequence

import msgpack

from libs.contracts.peers import SLICES_PER_FETCH_MAX
from libs.contracts.wire import unpack
from libs.kernel.errors import ContractViolation
from libs.transfer.layout import TensorSlice

INTEGER_BYTES = 8


def pack_integers(values: Sequence[int]) -> bytes:
    """Return these unsigned integers of 64 bits as bytes."""
    return struct.pack(f">{len(values)}Q", *values)


def unpack_integers(body: memoryview, *, integers_max: int) -> tuple[int, ...]:
    """Read what `pack_integers` wrote. Raises: ContractViolation."""
    count, rest = divmod(body.nbytes, INTEGER_BYTES)
    if rest or count > integers_max:
        raise ContractViolation(f"{body.nbytes} bytes are not up to {integers_max} integers")
    return struct.unpack(f">{count}Q", body)


def pack_pairs(pairs: Sequence[tuple[int, int]]) -> bytes:
    """Return pairs of such integers as bytes."""
    return pack_integers([value for pair in pairs for value in pair])


def unpack_pairs(body: memoryview, *, pairs_max: int) -> tuple[tuple[int, int], ...]:
    """Read what `pack_pairs` wrote. Raises: ContractViolation."""
    values = unpack_integers(body, integers_max=2 * pairs_max)
    if len(values) % 2:
        raise ContractViolation(f"{len(values)} integers are no pairs")
    return tuple(zip(values[::2], values[1::2], strict=True))


def pack_slices(slices: Sequence[TensorSlice]) -> bytes:
    """Return slices as bytes."""
    packed: bytes = msgpack.packb([(s.tensor, s.start, s.stop, s.bytes_per_unit) for s in slices])
    return packed


def unpack_slices(body: memoryview) -> tuple[TensorSlice, ...]:
    """Read what `pack_slices` wrote. Raises: ContractViolation."""
    match unpack(bytes(body)):
        case [*rows] if 0 < len(rows) <= SLICES_PER_FETCH_MAX:
            return tuple(map(_unpack_slice, rows))
        case _:
            raise ContractViolation(f"not 1 to {SLICES_PER_FETCH_MAX} slices")


def _unpack_slice(row: object) -> TensorSlice:
    match row:
        case [str(tensor), int(start), int(stop), int(unit)] if 0 <= start < stop and unit > 0:
            return TensorSlice(tensor=tensor, start=start, stop=stop, bytes_per_unit=unit)
        case _:
            raise ContractViolation("malformed slice of a tensor")
