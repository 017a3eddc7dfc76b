"""Between any two shapes: everything arrives exactly once, from somebody who holds it."""

from collections import Counter
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from libs.transfer.layout import (
    FromDisk,
    FromOwnStore,
    FromPeer,
    KvRank,
    TensorSlice,
    can_route_kv,
    kv_routes,
    missing,
    weight_routes,
)
from libs.transfer.spans import Span, joined, without

LAYERS, HEADS, ROWS = 12, 8, 24


def cuts(total: int, parts: int) -> list[Span]:
    """Cut 0..total into equal parts, each part repeated where there are more parts than units."""
    if parts > total:
        repeats = parts // total
        return [Span(unit, unit + 1) for unit in range(total) for _ in range(repeats)]
    edges = [total * part // parts for part in range(parts + 1)]
    return [Span(start, stop) for start, stop in pairwise(edges)]


@st.composite
def replicas(draw: st.DrawFn) -> list[KvRank]:
    """A replica of P stages and M shards on workers of a small pool, in any order."""
    stages, shards = draw(st.sampled_from([1, 2, 3, 5])), draw(st.sampled_from([1, 2, 3, 8, 16]))
    ids = draw(st.permutations([f"w{number}" for number in range(80)]))
    rectangles = [
        (layers, heads) for layers in cuts(LAYERS, stages) for heads in cuts(HEADS, shards)
    ]
    return [
        KvRank(worker_id=worker_id, layers=layers, heads=heads)
        for worker_id, (layers, heads) in zip(ids, rectangles, strict=False)
    ]


def cells(layers: Span, heads: Span) -> Counter[tuple[int, int]]:
    return Counter((layer, head) for layer in layers for head in heads)


@given(before=st.lists(replicas(), min_size=1, max_size=2), after=replicas())
def test_every_head_of_every_layer_arrives_exactly_once(
    before: list[list[KvRank]], after: list[KvRank]
) -> None:
    # Two replicas may share workers of the pool here; a worker then simply holds more.
    sources = [rank for replica in before for rank in replica]
    assert can_route_kv(sources, after)
    routes = kv_routes(sources, after)
    for target in after:
        arrived: Counter[tuple[int, int]] = Counter()
        for route in routes:
            if route.target_rank == target:
                arrived += cells(route.layers, route.heads)
        assert arrived == cells(target.layers, target.heads)
    assert all(r.source_rank.holds(layers=r.layers, heads=r.heads) for r in routes)
    assert all(r.source_rank in sources for r in routes)


@given(before=replicas(), after=replicas())
def test_what_a_target_holds_itself_crosses_no_link(
    before: list[KvRank], after: list[KvRank]
) -> None:
    by_id = {rank.worker_id: rank for rank in before}
    for route in kv_routes(before, after):
        own = by_id.get(route.target_rank.worker_id)
        if own is not None and not route.is_local:
            assert not (own.layers.overlap(route.layers) and own.heads.overlap(route.heads))


@given(before=replicas(), after=replicas(), lost=st.integers(0, 79))
def test_a_plan_is_possible_exactly_if_somebody_holds_each_cell(
    before: list[KvRank], after: list[KvRank], lost: int
) -> None:
    left = [rank for rank in before if rank.worker_id != f"w{lost}"]
    held: Counter[tuple[int, int]] = Counter()
    for rank in left:
        held |= cells(rank.layers, rank.heads)
    wanted: Counter[tuple[int, int]] = Counter()
    for rank in after:
        wanted |= cells(rank.layers, rank.heads)
    assert can_route_kv(left, after) == (wanted <= held)


spans = st.builds(
    lambda start, length: Span(start, min(ROWS, start + length)),
    st.integers(0, ROWS - 1),
    st.integers(1, ROWS),
)


@given(span=spans, held=st.lists(spans, max_size=5))
def test_without_leaves_exactly_the_integers_that_nobody_holds(
    span: Span, held: list[Span]
) -> None:
    left = without(span, held)
    assert set().union(*left) == set(span) - set().union(*held)
    assert joined(left) == left


slices = st.builds(
    lambda tensor, span: TensorSlice(
        tensor=tensor, start=span.start, stop=span.stop, bytes_per_unit=8
    ),
    st.sampled_from(["q", "k"]),
    spans,
)
stores = st.dictionaries(
    st.sampled_from(["a", "b", "c", "d"]), st.lists(slices, max_size=3), max_size=4
)


def rows(parts: list[TensorSlice]) -> Counter[tuple[str, int]]:
    return Counter((part.tensor, row) for part in parts for row in part.span)


@given(wanted=stores, held=stores, dying=st.frozensets(st.sampled_from(["a", "b", "c"])))
def test_every_wanted_row_is_routed_once_from_the_nearest_source(
    wanted: dict[str, list[TensorSlice]],
    held: dict[str, list[TensorSlice]],
    dying: frozenset[str],
) -> None:
    routes = weight_routes(targets=wanted, holders=held, dying=dying)
    assert routes.keys() == wanted.keys()
    assert routes == weight_routes(
        targets=dict(reversed(wanted.items())), holders=dict(reversed(held.items())), dying=dying
    )
    holders = {worker_id: rows(parts) for worker_id, parts in held.items()}
    for target_id, chosen in routes.items():
        assert rows([route.slice for route in chosen]) == rows(wanted[target_id])
        for route in chosen:
            for row in rows([route.slice]):
                having = {worker_id for worker_id, owned in holders.items() if owned[row]}
                match route.source:
                    case FromOwnStore():
                        assert target_id in having
                    case FromPeer(worker_id=peer_id):
                        assert peer_id in having
                        assert target_id not in having
                        assert peer_id not in dying or having <= dying
                    case FromDisk():
                        assert not having


@given(wanted=st.lists(slices, max_size=3), held=st.lists(slices, max_size=4))
def test_missing_and_held_together_are_what_is_wanted(
    wanted: list[TensorSlice], held: list[TensorSlice]
) -> None:
    lacking = rows(list(missing(wanted, held)))
    owned = rows(held)
    assert all(not owned[row] for row in lacking)
    for row, count in rows(wanted).items():
        assert lacking[row] == (0 if owned[row] else count)
