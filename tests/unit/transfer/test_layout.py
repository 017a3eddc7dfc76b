"""Routes of KV and weights between replicas of two shapes."""

import pytest

from libs.kernel.errors import InvariantViolation
from libs.transfer.layout import (
    FromDisk,
    FromOwnStore,
    FromPeer,
    KvRank,
    TensorSlice,
    WeightRoute,
    can_route_kv,
    kv_routes,
    missing,
    weight_routes,
)
from libs.transfer.spans import Span

NOBODY: frozenset[str] = frozenset()


def a_rank(
    worker_id: str, *, layers: tuple[int, int] = (0, 8), heads: tuple[int, int] = (0, 4)
) -> KvRank:
    return KvRank(worker_id=worker_id, layers=Span(*layers), heads=Span(*heads))


def a_slice(start: int, stop: int, *, tensor: str = "q") -> TensorSlice:
    return TensorSlice(tensor=tensor, start=start, stop=stop, bytes_per_unit=10)


def test_four_ranks_give_one_rank_a_rectangle_each() -> None:
    sources = [
        a_rank("a", layers=(0, 4), heads=(0, 2)),
        a_rank("b", layers=(0, 4), heads=(2, 4)),
        a_rank("c", layers=(4, 8), heads=(0, 2)),
        a_rank("d", layers=(4, 8), heads=(2, 4)),
    ]
    target = a_rank("a")
    routes = kv_routes(sources, [target])
    assert [(route.source_rank.worker_id, route.layers, route.heads) for route in routes] == [
        ("a", Span(0, 4), Span(0, 2)),
        ("b", Span(0, 4), Span(2, 4)),
        ("c", Span(4, 8), Span(0, 2)),
        ("d", Span(4, 8), Span(2, 4)),
    ]
    assert [route.is_local for route in routes] == [True, False, False, False]


def test_an_unchanged_shape_is_one_local_copy_per_rank() -> None:
    ranks = [a_rank("a", heads=(0, 2)), a_rank("b", heads=(2, 4))]
    assert all(route.is_local and route.cells == 16 for route in kv_routes(ranks, ranks))


def test_holders_of_replicated_heads_share_the_sending() -> None:
    # Four shards of two KV heads: a and b hold head 0, c and d head 1.
    sources = [
        a_rank("a", heads=(0, 1)),
        a_rank("b", heads=(0, 1)),
        a_rank("c", heads=(1, 2)),
        a_rank("d", heads=(1, 2)),
    ]
    targets = [a_rank(f"t{number}", heads=(0, 2)) for number in range(4)]
    routes = kv_routes(sources, targets)
    assert len(routes) == 8
    for worker_id in "abcd":
        assert (
            sum(route.cells for route in routes if route.source_rank.worker_id == worker_id) == 16
        )


def test_a_copy_at_hand_is_preferred_and_costs_the_others_nothing() -> None:
    sources = [a_rank("a"), a_rank("b")]
    routes = kv_routes(sources, [a_rank("b"), a_rank("x"), a_rank("y")])
    senders = [route.source_rank.worker_id for route in routes]
    assert senders == ["b", "a", "b"]


def test_neighbouring_rectangles_of_one_source_are_one_route() -> None:
    sources = [a_rank("a"), a_rank("b", layers=(2, 6), heads=(1, 3))]
    routes = kv_routes(sources[:1] + sources[1:], [a_rank("a")])
    assert [(route.layers, route.heads) for route in routes] == [(Span(0, 8), Span(0, 4))]


def test_what_no_source_holds_cannot_be_routed() -> None:
    sources = [a_rank("a", layers=(0, 4))]
    targets = [a_rank("t")]
    assert not can_route_kv(sources, targets)
    assert can_route_kv(sources, [a_rank("t", layers=(1, 4))])
    with pytest.raises(InvariantViolation):
        kv_routes(sources, targets)


def test_missing_is_what_is_wanted_and_not_held() -> None:
    held = [a_slice(0, 4), a_slice(6, 8), a_slice(0, 100, tensor="k")]
    assert missing([a_slice(2, 10)], held) == (a_slice(4, 6), a_slice(8, 10))
    assert missing([a_slice(0, 4)], held) == ()
    assert missing([a_slice(0, 4, tensor="v")], held) == (a_slice(0, 4, tensor="v"),)


def test_weights_come_from_the_own_store_then_a_peer_then_the_disk() -> None:
    routes = weight_routes(
        targets={"t": [a_slice(0, 12)]},
        holders={"t": [a_slice(0, 4)], "p": [a_slice(0, 8)]},
        dying=NOBODY,
    )
    assert routes == {
        "t": (
            WeightRoute(slice=a_slice(0, 4), source=FromOwnStore()),
            WeightRoute(slice=a_slice(4, 8), source=FromPeer("p")),
            WeightRoute(slice=a_slice(8, 12), source=FromDisk()),
        )
    }


def test_a_dying_peer_sends_only_what_nobody_else_has() -> None:
    routes = weight_routes(
        targets={"t": [a_slice(0, 8)]},
        holders={"a": [a_slice(0, 8)], "b": [a_slice(0, 4)]},
        dying=frozenset({"a"}),
    )
    assert [(route.slice, route.source) for route in routes["t"]] == [
        (a_slice(0, 4), FromPeer("b")),
        (a_slice(4, 8), FromPeer("a")),
    ]


def test_peers_that_hold_the_same_share_the_sending() -> None:
    wanted = [a_slice(0, 6, tensor=name) for name in "qkvo"]
    routes = weight_routes(
        targets={"s": wanted, "t": wanted},
        holders={"a": wanted, "b": wanted},
        dying=NOBODY,
    )
    sent = {"a": 0, "b": 0}
    for route in routes["s"] + routes["t"]:
        assert isinstance(route.source, FromPeer)
        sent[route.source.worker_id] += route.slice.bytes
    assert sent == {"a": 240, "b": 240}


def test_rows_of_different_sizes_under_one_name_are_a_bug() -> None:
    other = TensorSlice(tensor="q", start=0, stop=4, bytes_per_unit=11)
    with pytest.raises(InvariantViolation):
        weight_routes(targets={"t": [a_slice(0, 4)]}, holders={"p": [other]}, dying=NOBODY)


@pytest.mark.parametrize(("bytes_max", "parts"), [(5, 7), (10, 7), (20, 4), (69, 2), (70, 1)])
def test_a_slice_is_split_between_rows(bytes_max: int, parts: int) -> None:
    split = a_slice(3, 10).split(bytes_max=bytes_max)
    assert len(split) == parts
    assert missing([a_slice(3, 10)], split) == ()
    assert sum(part.bytes for part in split) == 70
