"""Weights go from any shape to any other by exactly what is missing, and nothing is kept twice."""

import shutil
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import GPTNeoXConfig

from libs.engine.checkpoint import Checkpoint
from libs.engine.decoder_builder import build_decoder
from libs.engine.model_config import ModelConfig, read_model_config
from libs.engine.parallel.position import Position, position_at, positions_of
from libs.engine.parallel.slices import all_slices_of
from libs.engine.parallel.weight_store import WeightStore
from libs.transfer.layout import FromPeer, TensorSlice, missing, weight_routes

CPU = torch.device("cpu")
BY_COLUMNS = ("o_proj.weight", "down_proj.weight", "fc2.weight", "out_proj.weight")
BY_COLUMNS += ("attention.dense.weight", "dense_4h_to_h.weight")
SHAPES = [(1, 1), (1, 2), (2, 2), (3, 1), (1, 4)]


def slices_of_all(config: ModelConfig, shape: tuple[int, int]) -> list[tuple[TensorSlice, ...]]:
    stages, shards = shape
    return [
        all_slices_of(config, position, element_bytes=4)
        for position in positions_of(config, stages=stages, shards=shards)
    ]


def a_store(config: ModelConfig) -> WeightStore:
    return WeightStore(config, dtype=torch.float32, device=CPU)


def loaded(config: ModelConfig, folder: Path, slices: tuple[TensorSlice, ...]) -> WeightStore:
    store = a_store(config)
    with Checkpoint(folder) as checkpoint:
        store.load(slices, checkpoint)
    return store


def bytes_of_slices(slices: tuple[TensorSlice, ...]) -> int:
    return sum(slice_.bytes for slice_ in slices)


@pytest.mark.parametrize(("before", "after"), list(product(SHAPES, SHAPES)))
def test_every_rank_of_a_new_shape_gets_its_slices_from_peers_alone(
    llama_folder: Path, before: tuple[int, int], after: tuple[int, int]
) -> None:
    config = read_model_config(llama_folder)
    sources = {
        f"w{rank}": loaded(config, llama_folder, slices)
        for rank, slices in enumerate(slices_of_all(config, before))
    }
    wanted = {f"w{rank}": slices for rank, slices in enumerate(slices_of_all(config, after))}
    holders = {name: store.held() for name, store in sources.items()}
    routes = weight_routes(targets=wanted, holders=holders, dying=frozenset())
    for name, slices in wanted.items():
        target = loaded(config, llama_folder, holders.get(name, ()))
        moved = 0
        for route in routes[name]:
            if isinstance(route.source, FromPeer):
                for part in route.slice.split(bytes_max=1000):
                    target.take(part, sources[route.source.worker_id].view(part))
                    moved += part.bytes
        expected = loaded(config, llama_folder, slices)
        assert moved == bytes_of_slices(missing(slices, holders.get(name, ())))
        assert target.missing(slices) == ()
        target.keep_only(slices)
        assert target.memory_bytes == expected.memory_bytes == bytes_of_slices(slices)
        for slice_ in slices:
            assert torch.equal(target.tensor(slice_), expected.tensor(slice_)), slice_


def test_slices_hold_what_the_checkpoint_does(model_folder: Path) -> None:
    config = read_model_config(model_folder)
    stored = load_file(model_folder / "model.safetensors")
    whole = loaded(config, model_folder, slices_of_all(config, (1, 1))[0])
    compared = [slice_ for slice_ in whole.held() if slice_.tensor in stored]
    assert len(compared) > 10
    for slice_ in compared:
        expected = stored[slice_.tensor]
        is_by_columns = slice_.tensor.endswith(BY_COLUMNS)
        assert torch.equal(whole.tensor(slice_), expected.t() if is_by_columns else expected)


@pytest.mark.parametrize("shards", [1, 2, 4])
def test_the_parts_of_an_interleaved_tensor_are_those_of_its_heads(
    save_model: Callable[[GPTNeoXConfig], Path], shards: int
) -> None:
    folder = save_model(
        GPTNeoXConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            vocab_size=384,
        )
    )
    config = read_model_config(folder)
    name = "gpt_neox.layers.1.attention.query_key_value"
    stored = load_file(folder / "model.safetensors")[f"{name}.weight"]
    by_head = stored.view(config.heads, 3, config.head_size, -1)
    for position in positions_of(config, stages=1, shards=shards):
        store = loaded(config, folder, all_slices_of(config, position, element_bytes=4))
        heads = position.head_range(config)
        for part, what in enumerate(("query", "key", "value")):
            (held,) = [s for s in store.held() if s.tensor == f"{name}.{what}.weight"]
            expected = by_head[heads.start : heads.stop, part].flatten(0, 1)
            assert torch.equal(store.tensor(held), expected)


def test_loading_reads_only_what_is_missing(llama_folder: Path) -> None:
    config = read_model_config(llama_folder)
    half, _ = slices_of_all(config, (1, 2))
    (whole,) = slices_of_all(config, (1, 1))
    store = loaded(config, llama_folder, half)
    with Checkpoint(llama_folder) as checkpoint:
        assert store.load(half, checkpoint) == 0
        assert store.load(whole, checkpoint) == bytes_of_slices(whole) - bytes_of_slices(half)


def a_position(config: ModelConfig, *, stages: int, shards: int) -> Position:
    return position_at(config, stages=stages, shards=shards, stage=0, shard=0)


def test_a_plain_decoder_uses_the_memory_of_the_store(llama_folder: Path) -> None:
    config = read_model_config(llama_folder)
    position = a_position(config, stages=1, shards=1)
    slices = all_slices_of(config, position, element_bytes=4)
    store = loaded(config, llama_folder, slices)
    for _ in range(2):
        build_decoder(store, position, row_copy_bytes_max=0, is_packed=False)
    assert store.memory_bytes == bytes_of_slices(slices)
    qkv = tuple(slice_ for slice_ in slices if "layers.1.self_attn" in slice_.tensor)[:3]
    assert store.exact(qkv).data_ptr() == store.tensor(qkv[0]).data_ptr()
    assert store.exact(qkv) is store.exact(qkv)


def test_a_dropped_position_frees_what_no_other_uses(llama_folder: Path) -> None:
    config = read_model_config(llama_folder)
    serving = a_position(config, stages=1, shards=1)
    staged = a_position(config, stages=1, shards=2)
    of_serving = all_slices_of(config, serving, element_bytes=4)
    of_staged = all_slices_of(config, staged, element_bytes=4)
    store = loaded(config, llama_folder, of_serving)
    for position in (serving, staged):
        build_decoder(store, position, row_copy_bytes_max=0, is_packed=False)
    both = store.memory_bytes
    assert bytes_of_slices(of_serving) < both
    assert both <= bytes_of_slices(of_serving) + bytes_of_slices(of_staged)
    expected = {slice_: store.tensor(slice_).clone() for slice_ in of_staged}
    store.keep_only((*of_serving, *of_staged))
    assert store.memory_bytes == both
    store.keep_only(of_staged)
    assert store.memory_bytes == bytes_of_slices(of_staged)
    for slice_, tensor in expected.items():
        assert torch.equal(store.tensor(slice_), tensor)
    store.keep_only(())
    assert store.memory_bytes == 0
    assert store.held() == ()


def test_an_abandoned_position_leaves_the_one_that_serves_as_it_was(llama_folder: Path) -> None:
    config = read_model_config(llama_folder)
    serving = a_position(config, stages=1, shards=1)
    of_serving = all_slices_of(config, serving, element_bytes=4)
    store = loaded(config, llama_folder, of_serving)
    build_decoder(store, serving, row_copy_bytes_max=0, is_packed=False)
    staged = a_position(config, stages=1, shards=4)
    build_decoder(store, staged, row_copy_bytes_max=0, is_packed=False)
    store.keep_only(of_serving)
    assert store.memory_bytes == bytes_of_slices(of_serving)


def test_bytes_that_do_not_fit_their_slice_are_refused(llama_folder: Path) -> None:
    config = read_model_config(llama_folder)
    (slice_, *_) = slices_of_all(config, (1, 1))[0]
    with pytest.raises(AssertionError):
        a_store(config).take(slice_, memoryview(bytes(slice_.bytes - 1)))
    with pytest.raises(AssertionError):
        a_store(config).tensor(slice_)


def test_a_store_takes_and_gives_bfloat16(llama_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(llama_folder, tmp_path / "model")
    config = read_model_config(folder)
    stores = [WeightStore(config, dtype=torch.bfloat16, device=CPU) for _ in range(2)]
    position = a_position(config, stages=1, shards=2)
    slices = all_slices_of(config, position, element_bytes=2)
    with Checkpoint(folder) as checkpoint:
        stores[0].load(slices, checkpoint)
    for slice_ in slices:
        out = bytearray(slice_.bytes)
        stores[0].read_into(slice_, memoryview(out))
        stores[1].take(slice_, memoryview(out))
        assert torch.equal(stores[0].tensor(slice_), stores[1].tensor(slice_))
