"""What stands before a message, and what is refused there."""

import struct

import pytest

from libs.kernel.errors import ContractViolation
from libs.transfer.framing import (
    GREETING_BYTES,
    allocated,
    check_greeting,
    checked_segments,
    pack_greeting,
    pack_lengths,
    unpack_lengths,
)
from libs.transfer.transport import (
    BODY_BYTES_MAX,
    HEADER_BYTES_MAX,
    SEGMENTS_MAX,
    ProtocolMismatch,
)


def test_a_peer_of_the_same_kind_and_version_is_greeted() -> None:
    check_greeting(pack_greeting("tcp"), kind="tcp", has_secret=False)
    check_greeting(pack_greeting("tcp", nonce=b"n" * 32), kind="tcp", has_secret=True)


@pytest.mark.parametrize(
    "greeting",
    [
        b"HTTP/1.1 400 Bad Request".ljust(GREETING_BYTES),
        pack_greeting("ucx"),
        struct.pack(">4sH10s32s", b"TIDE", 99, b"tcp", bytes(32)),
        pack_greeting("tcp", nonce=b"n" * 32),
    ],
    ids=["http", "another transport", "another version", "one with a secret"],
)
def test_another_peer_is_not(greeting: bytes) -> None:
    with pytest.raises(ProtocolMismatch):
        check_greeting(greeting, kind="tcp", has_secret=False)


def test_a_peer_without_a_secret_is_not_greeted_by_one_with() -> None:
    with pytest.raises(ProtocolMismatch):
        check_greeting(pack_greeting("tcp"), kind="tcp", has_secret=True)


def test_lengths_at_their_bounds_pass_and_past_them_do_not() -> None:
    largest = bytes(HEADER_BYTES_MAX)
    packed = pack_lengths(largest, BODY_BYTES_MAX)
    assert unpack_lengths(packed) == (HEADER_BYTES_MAX, BODY_BYTES_MAX)
    for header, size in ((largest + b"x", 0), (b"", BODY_BYTES_MAX + 1)):
        with pytest.raises(ProtocolMismatch):
            unpack_lengths(pack_lengths(header, size))


def test_empty_buffers_of_a_body_vanish_and_wide_ones_count_in_bytes() -> None:
    wide = memoryview(bytearray(16)).cast("Q")
    segments = checked_segments(b"", [b"", b"ab", bytearray(), wide])
    assert [segment.nbytes for segment in segments] == [2, 16]


def test_a_message_over_a_bound_is_refused_before_it_is_sent() -> None:
    with pytest.raises(ContractViolation):
        checked_segments(bytes(HEADER_BYTES_MAX + 1), [])
    with pytest.raises(ContractViolation):
        checked_segments(b"", [b""] * (SEGMENTS_MAX + 1))
    with pytest.raises(ContractViolation):
        # One buffer many times over: the bound counts bytes sent, not memory.
        checked_segments(b"", [bytes(2**20)] * 1025)


def test_memory_of_the_wrong_length_is_refused() -> None:
    with pytest.raises(ContractViolation):
        allocated(b"", 5, lambda _, size: memoryview(bytearray(size + 1)))
    assert allocated(b"", 5, None).nbytes == 5
