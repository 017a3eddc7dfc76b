"""Hashes, blocks and slices arrive as they were sent; anything else is refused."""

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from libs.contracts.peers import SLICES_PER_FETCH_MAX
from libs.kernel.errors import ContractViolation
from libs.transfer.layout import TensorSlice
from services.gpu_worker.peers.bodies import (
    pack_integers,
    pack_pairs,
    pack_slices,
    unpack_integers,
    unpack_pairs,
    unpack_slices,
)

INTEGERS = st.integers(0, 2**64 - 1)
A_SLICE = TensorSlice(tensor="layers.0.q", start=4, stop=8, bytes_per_unit=256)


@settings(max_examples=50, deadline=None)
@given(values=st.lists(INTEGERS), pairs=st.lists(st.tuples(INTEGERS, INTEGERS)))
def test_integers_and_pairs_arrive(values: list[int], pairs: list[tuple[int, int]]) -> None:
    body = memoryview(pack_integers(values))
    assert unpack_integers(body, integers_max=len(values)) == tuple(values)
    body = memoryview(pack_pairs(pairs))
    assert unpack_pairs(body, pairs_max=len(pairs)) == tuple(pairs)


@pytest.mark.parametrize("body", [b"1234567", b"\0" * 24])
def test_what_is_no_pair_is_refused(body: bytes) -> None:
    with pytest.raises(ContractViolation):
        unpack_pairs(memoryview(body), pairs_max=9)


def test_more_integers_than_the_bound_are_refused() -> None:
    body = memoryview(pack_integers([1, 2, 3]))
    assert unpack_integers(body, integers_max=3) == (1, 2, 3)
    with pytest.raises(ContractViolation):
        unpack_integers(body, integers_max=2)


def test_slices_arrive() -> None:
    assert unpack_slices(memoryview(pack_slices([A_SLICE, A_SLICE]))) == (A_SLICE, A_SLICE)


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [["a", 0, 1]],
        [["a", 1, 1, 4]],
        [["a", -1, 1, 4]],
        [["a", 0, 1, 0]],
        [[b"a", 0, 1, 4]],
        [["a", 0, 1, 4]] * (SLICES_PER_FETCH_MAX + 1),
        {"a": 1},
    ],
    ids=lambda rows: str(rows)[:40],
)
def test_other_slices_are_refused(rows: object) -> None:
    with pytest.raises(ContractViolation):
        unpack_slices(memoryview(msgpack.packb(rows)))
