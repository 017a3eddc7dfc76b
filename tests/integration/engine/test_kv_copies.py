"""KV goes between replicas of any two shapes, and a session that follows it loses nothing."""

from itertools import product
from pathlib import Path

import pytest
import torch

from libs.engine.attention import PagedAttention
from libs.engine.kv_blocks import kv_piece_bytes
from libs.engine.loading import EngineOptions
from libs.engine.model_config import ModelConfig
from libs.engine.parallel.member import ReplicaModel, read_replica_model
from libs.engine.parallel.position import positions_of
from libs.engine.requests import SamplingOptions, SequenceRequest, StopOptions
from libs.transfer.layout import KvRank, KvRoute, kv_routes
from libs.transfer.spans import Span
from tests.integration.engine.replica_fleet import Fleet, Replica, form_replica

TINY = Path(__file__).parents[3] / "models" / "tide-tiny"
SHAPES = [(1, 1), (2, 1), (1, 2), (2, 2), (3, 1), (1, 4)]
BLOCKS = 6
BLOCK_TOKENS = 16
TOKENS_BEFORE = 70


@pytest.fixture(scope="module")
def tiny() -> ReplicaModel:
    return read_replica_model(str(TINY), options=EngineOptions(dtype="float32"))


def kv_ranks(config: ModelConfig, name: str, shape: tuple[int, int]) -> list[KvRank]:
    """Say what each rank of a replica holds, in the order of ranks."""
    stages, shards = shape
    ranks = []
    for position in positions_of(config, stages=stages, shards=shards):
        heads = position.kv_head_range(config)
        ranks.append(
            KvRank(
                worker_id=f"{name}-{position.rank}",
                layers=Span(position.layer_start, position.layer_stop),
                heads=Span(heads.start, heads.stop),
            )
        )
    return ranks


def empty_attentions(
    model: ReplicaModel, name: str, shape: tuple[int, int], dtype: torch.dtype
) -> dict[str, PagedAttention]:
    return {
        f"{name}-{position.rank}": PagedAttention(
            model.kv_shape(position, blocks=BLOCKS),
            heads=len(position.head_range(model.config)),
            windows=frozenset(),
            context_tokens_max=BLOCKS * BLOCK_TOKENS,
            dtype=dtype,
            device=torch.device("cpu"),
        )
        for position in positions_of(model.config, stages=shape[0], shards=shape[1])
    }


def exported(
    attention: PagedAttention, part: KvRank | KvRoute, block_ids: list[int], dtype: torch.dtype
) -> bytes:
    shape = attention.shape
    size = kv_piece_bytes(
        layers=len(part.layers),
        heads=len(part.heads),
        blocks=len(block_ids),
        block_tokens=shape.block_tokens,
        head_size=shape.head_size,
        element_bytes=dtype.itemsize,
    )
    out = bytearray(size)
    attention.export_blocks(
        layers=range(part.layers.start, part.layers.stop),
        heads=range(part.heads.start, part.heads.stop),
        block_ids=block_ids,
        out=memoryview(out),
    )
    return bytes(out)


def import_into(
    attention: PagedAttention, part: KvRank | KvRoute, block_ids: list[int], content: bytes
) -> None:
    attention.import_blocks(
        layers=range(part.layers.start, part.layers.stop),
        heads=range(part.heads.start, part.heads.stop),
        block_ids=block_ids,
        data=memoryview(content),
    )


def cut(whole_LBT2KD: torch.Tensor, rank: KvRank, block_ids: list[int]) -> bytes:
    """Return the bytes that this rank should have, from the KV of the whole model."""
    part = whole_LBT2KD[
        rank.layers.start : rank.layers.stop, block_ids, ..., rank.heads.start : rank.heads.stop, :
    ]
    return part.contiguous().view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("source", "target"), list(product(SHAPES, SHAPES)))
def test_blocks_arrive_between_all_pairs_of_shapes(
    tiny: ReplicaModel, source: tuple[int, int], target: tuple[int, int], dtype: torch.dtype
) -> None:
    config = tiny.config
    kv_shape = (config.layers, BLOCKS, BLOCK_TOKENS, 2, config.kv_heads, config.head_size)
    whole = torch.randn(kv_shape, generator=torch.Generator().manual_seed(3)).to(dtype)
    source_blocks, target_blocks = [4, 0, 3], [1, 5, 2]
    source_ranks = kv_ranks(config, "source", source)
    target_ranks = kv_ranks(config, "target", target)
    sources = empty_attentions(tiny, "source", source, dtype)
    targets = empty_attentions(tiny, "target", target, dtype)
    for rank in source_ranks:
        every_block = list(range(BLOCKS))
        import_into(sources[rank.worker_id], rank, every_block, cut(whole, rank, every_block))
    for route in kv_routes(source_ranks, target_ranks):
        piece = exported(sources[route.source_rank.worker_id], route, source_blocks, dtype)
        import_into(targets[route.target_rank.worker_id], route, target_blocks, piece)
    for rank in target_ranks:
        got = exported(targets[rank.worker_id], rank, target_blocks, dtype)
        assert got == cut(whole, rank, source_blocks)
        assert not any(exported(targets[rank.worker_id], rank, [0, 3, 4], dtype))


def a_request(generated: tuple[int, ...] = ()) -> SequenceRequest:
    return SequenceRequest(
        sequence_id="s",
        prompt_token_ids=tuple(range(30, 77)),
        generated_token_ids=generated,
        sampling=SamplingOptions(temperature=0.8, seed=4),
        stop=StopOptions(max_tokens=TOKENS_BEFORE + 40, ignore_eos=True),
    )


def copy_kv(
    tiny: ReplicaModel, source: Replica, target: Replica, folder: Path, *, is_spoiled: bool = False
) -> None:
    """Copy the running session's full blocks, as workers do it over the network."""
    config = tiny.config
    shapes = [(r.lead.position.stages, r.lead.position.shards) for r in (source, target)]
    block_of = dict(source.scheduler.full_blocks("s"))
    source.scheduler.pin_blocks("out", list(block_of.values()))
    reserved = target.scheduler.reserve_imports("in", list(block_of))
    for number, route in enumerate(
        kv_routes(kv_ranks(config, "source", shapes[0]), kv_ranks(config, "target", shapes[1]))
    ):
        path = folder / str(number)
        piece = {
            "layers": (route.layers.start, route.layers.stop),
            "heads": (route.heads.start, route.heads.stop),
        }
        source_rank = int(route.source_rank.worker_id.split("-")[1])
        target_rank = int(route.target_rank.worker_id.split("-")[1])
        source.export_kv(source_rank, piece | {"block_ids": [block_of[h] for h in reserved]}, path)
        if is_spoiled:
            path.write_bytes(bytes(path.stat().st_size))
        target.import_kv(target_rank, piece | {"block_ids": list(reserved.values())}, path)
    target.scheduler.commit_imports("in", list(reserved))
    target.scheduler.check_invariants()
    source.scheduler.release_blocks("out")


def moved(
    tiny: ReplicaModel,
    fleet: Fleet,
    shapes: tuple[tuple[int, int], tuple[int, int]],
    folder: Path,
    *,
    is_spoiled: bool = False,
) -> tuple[list[int], int]:
    """Generate some tokens at the source, the rest at the target; return all of them, and how many
    tokens the target computed anew."""
    (stages, shards), (target_stages, target_shards) = shapes
    everyone = fleet.want(stages * shards - 1 + target_stages * target_shards - 1)
    here, there = everyone[: stages * shards - 1], everyone[stages * shards - 1 :]
    source = form_replica(fleet, TINY, stages=stages, shards=shards, members=here)
    target = form_replica(
        fleet, TINY, stages=target_stages, shards=target_shards, members=there, step_tokens_max=512
    )
    source.scheduler.add(a_request(), now_ns=0)
    tokens: list[int] = []
    while len(tokens) < TOKENS_BEFORE:
        tokens += [token.token_id for token in source.step()]
    copy_kv(tiny, source, target, folder, is_spoiled=is_spoiled)
    tokens += target.run([a_request(tuple(tokens))])["s"]
    target.scheduler.release_blocks("in")
    target.scheduler.check_invariants()
    return tokens, len(target.plans[0].entries[0].token_ids)


@pytest.fixture(scope="module")
def undisturbed(fleet: Fleet) -> list[int]:
    return form_replica(fleet, TINY, stages=1, shards=1).run([a_request()])["s"]


@pytest.mark.parametrize(
    "shapes", [((1, 1), (1, 2)), ((1, 2), (2, 1)), ((2, 1), (1, 1)), ((2, 1), (1, 2))]
)
def test_a_session_that_follows_its_kv_computes_only_what_no_full_block_holds(
    tiny: ReplicaModel,
    fleet: Fleet,
    undisturbed: list[int],
    tmp_path: Path,
    shapes: tuple[tuple[int, int], tuple[int, int]],
) -> None:
    tokens, computed_anew = moved(tiny, fleet, shapes, tmp_path)
    assert tokens == undisturbed
    assert computed_anew <= BLOCK_TOKENS


def test_spoiled_kv_is_noticed(
    tiny: ReplicaModel, fleet: Fleet, undisturbed: list[int], tmp_path: Path
) -> None:
    """The negative control: the target does use what was copied."""
    tokens, _ = moved(tiny, fleet, ((1, 1), (1, 2)), tmp_path, is_spoiled=True)
    assert tokens != undisturbed
