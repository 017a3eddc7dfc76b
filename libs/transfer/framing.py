"""The bytes around messages: the greeting of a connection, and the lengths before a message.

    greeting   "TIDE" | version u16 | transport, 10 bytes, padded with zeros | nonce, 32 bytes,
               zeros from a side that holds no secret; see peer_secret.py
    message    header length u32 | body length u64 | header | body

Both are checked before anything else is read or allocated.
"""

import struct
from collections.abc import Sequence
from typing import Final

from libs.kernel.errors import ContractViolation
from libs.transfer.transport import (
    BODY_BYTES_MAX,
    HEADER_BYTES_MAX,
    SEGMENTS_MAX,
    Allocate,
    Buffer,
    ProtocolMismatch,
)

MAGIC: Final = b"TIDE"
VERSION: Final = 2
NONCE_BYTES: Final = 32
NO_NONCE: Final = bytes(NONCE_BYTES)
_GREETING: Final = struct.Struct(f">4sH10s{NONCE_BYTES}s")
_LENGTHS: Final = struct.Struct(">IQ")

GREETING_BYTES: Final = _GREETING.size
LENGTHS_BYTES: Final = _LENGTHS.size


def pack_greeting(kind: str, *, nonce: bytes = NO_NONCE) -> bytes:
    """Return what either side of a connection of this transport sends first."""
    return _GREETING.pack(MAGIC, VERSION, kind.encode(), nonce)


def check_greeting(greeting: bytes, *, kind: str, has_secret: bool) -> None:
    """Raise ProtocolMismatch unless the peer speaks the same version of the same transport, and
    holds a secret, whichever, exactly if this side does."""
    magic, version, peer_kind, nonce = _GREETING.unpack(greeting)
    if magic != MAGIC:
        raise ProtocolMismatch("the peer does not speak this protocol")
    if version != VERSION:
        raise ProtocolMismatch(f"the peer speaks version {version}, this side {VERSION}")
    if peer_kind.rstrip(b"\0") != kind.encode():
        raise ProtocolMismatch(f"the peer does not speak {kind}")
    if has_secret and nonce == NO_NONCE:
        raise ProtocolMismatch("the peer holds no secret, this side does")
    if not has_secret and nonce != NO_NONCE:
        raise ProtocolMismatch("the peer holds a secret, this side none")


def pack_lengths(header: bytes, body_bytes: int) -> bytes:
    """Return what goes before a message."""
    return _LENGTHS.pack(len(header), body_bytes)


def unpack_lengths(packed: bytes) -> tuple[int, int]:
    """Return the lengths of header and body. Raises: ProtocolMismatch if one is over its bound."""
    header_bytes, body_bytes = _LENGTHS.unpack(packed)
    if header_bytes > HEADER_BYTES_MAX:
        raise ProtocolMismatch(f"a header of {header_bytes} bytes, over {HEADER_BYTES_MAX}")
    if body_bytes > BODY_BYTES_MAX:
        raise ProtocolMismatch(f"a body of {body_bytes} bytes, over {BODY_BYTES_MAX}")
    return header_bytes, body_bytes


def checked_segments(header: bytes, body: Sequence[Buffer]) -> list[memoryview]:
    """Return the body's non-empty buffers as bytes. Raises: ContractViolation over a bound."""
    if len(header) > HEADER_BYTES_MAX:
        raise ContractViolation(f"a header of {len(header)} bytes, over {HEADER_BYTES_MAX}")
    if len(body) > SEGMENTS_MAX:
        raise ContractViolation(f"a body of {len(body)} buffers, over {SEGMENTS_MAX}")
    segments = [memoryview(buffer).cast("B") for buffer in body if memoryview(buffer).nbytes]
    if body_bytes(segments) > BODY_BYTES_MAX:
        raise ContractViolation(f"a body over {BODY_BYTES_MAX} bytes")
    return segments


def body_bytes(segments: Sequence[memoryview]) -> int:
    """Return the length of a body."""
    return sum(segment.nbytes for segment in segments)


def allocated(header: bytes, size: int, allocate: Allocate | None) -> memoryview:
    """Return memory for a body of this size, from the caller if it wants to supply it."""
    if allocate is None:
        return memoryview(bytearray(size))
    body = allocate(header, size)
    if body.nbytes != size:
        raise ContractViolation(f"{body.nbytes} bytes allocated for a body of {size}")
    return body.cast("B")
