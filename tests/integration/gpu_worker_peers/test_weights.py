"""Weights fetched from a peer are those of the files, whatever the shapes, and come once."""

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from libs.engine.checkpoint import Checkpoint
from libs.engine.model_config import ModelConfig, read_model_config
from libs.engine.parallel.position import position_at
from libs.engine.parallel.slices import all_slices_of
from libs.engine.parallel.weight_store import WeightStore
from libs.kernel.errors import Unavailable
from libs.kernel.units import KIB, NS_PER_MS, NS_PER_S
from libs.transfer.layout import TensorSlice, missing
from libs.transfer.loopback import LoopbackFaults, LoopbackTransport
from libs.transfer.ticket import TransferOptions
from services.gpu_worker.peers.ports import PeerOptions
from tests.integration.gpu_worker_peers.conftest import OpenFleet
from tests.integration.gpu_worker_peers.fleet import Worker

MODEL = Path(__file__).resolve().parents[3] / "models" / "tide-tiny"
SMALL_PIECES = PeerOptions(weight_piece_bytes_max=16 * KIB)
BUFFER_PIECES = (
    TransferOptions().buffer_bytes_max + TransferOptions().buffer_bytes_min
) // SMALL_PIECES.weight_piece_bytes_max
IMPATIENT = replace(SMALL_PIECES, fetch_stall_ns=300 * NS_PER_MS, piece_ns=300 * NS_PER_MS)


class CountingStore:
    """A store of plain bytes that counts how often each slice comes."""

    def __init__(self) -> None:
        self.first_taken = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self.taken: Counter[TensorSlice] = Counter()
        self.content: dict[TensorSlice, bytes] = {}

    def take(self, slice_: TensorSlice, data: memoryview) -> None:
        self._loop.call_soon_threadsafe(self.first_taken.set)
        self.taken[slice_] += 1
        self.content[slice_] = bytes(data)


class ByteStore:
    """Tensors of patterned bytes."""

    def __init__(self, tensors: int, *, rows: int, row_bytes: int) -> None:
        self.slices = [
            TensorSlice(tensor=f"tensor-{number}", start=0, stop=rows, bytes_per_unit=row_bytes)
            for number in range(tensors)
        ]
        self.reads = 0

    def held(self) -> Sequence[TensorSlice]:
        return self.slices

    def read_into(self, slice_: TensorSlice, out: memoryview) -> None:
        self.reads += 1
        out[:] = self.bytes_of(slice_)

    @staticmethod
    def bytes_of(slice_: TensorSlice) -> bytes:
        number = int(slice_.tensor.removeprefix("tensor-"))
        return b"".join(
            bytes([(31 * number + row) % 251]) * slice_.bytes_per_unit for row in slice_.span
        )


@pytest.fixture(scope="module")
def config() -> ModelConfig:
    return read_model_config(MODEL)


def a_store(config: ModelConfig) -> WeightStore:
    return WeightStore(config, dtype=torch.float32, device=torch.device("cpu"))


def slices_at(config: ModelConfig, stages: int, shards: int, rank: int) -> tuple[TensorSlice, ...]:
    position = position_at(
        config, stages=stages, shards=shards, stage=rank // shards, shard=rank % shards
    )
    return all_slices_of(config, position, element_bytes=4)


def faults_of(worker: Worker) -> LoopbackFaults:
    assert isinstance(worker.transport, LoopbackTransport)
    return worker.transport.listener_at(worker.address).faults


async def test_fetched_weights_equal_those_of_the_files(
    fleet: OpenFleet, kind: str, config: ModelConfig
) -> None:
    held, fetched, reference = a_store(config), a_store(config), a_store(config)
    wanted = slices_at(config, 2, 2, 3)
    with Checkpoint(MODEL) as checkpoint:
        held.load(slices_at(config, 2, 1, 1), checkpoint)
        reference.load(wanted, checkpoint)
    async with fleet(2, kind) as workers:
        holder, loader = workers.workers
        holder.network.serve_weights(held)
        summary = await loader.network.fetch_weights(
            source_address=holder.address, replica_epoch=4, slices=wanted, store=fetched
        )
        assert summary.bytes == sum(slice_.bytes for slice_ in wanted)
        assert holder.network.link_rates["worker-1"] > 0
    assert missing(wanted, fetched.held()) == ()
    for slice_ in wanted:
        assert bytes(fetched.view(slice_)) == bytes(reference.view(slice_)), slice_


async def test_what_the_holder_lacks_is_refused_and_nothing_is_stored(
    fleet: OpenFleet, config: ModelConfig
) -> None:
    held, fetched = a_store(config), CountingStore()
    with Checkpoint(MODEL) as checkpoint:
        held.load(slices_at(config, 2, 1, 1), checkpoint)
    async with fleet(2) as workers:
        holder, loader = workers.workers
        wanted = slices_at(config, 2, 1, 0)
        with pytest.raises(Unavailable, match="not_held"):
            await loader.network.fetch_weights(
                source_address=holder.address, replica_epoch=4, slices=wanted, store=fetched
            )
        holder.network.serve_weights(held)
        with pytest.raises(Unavailable, match="not_held"):
            await loader.network.fetch_weights(
                source_address=holder.address, replica_epoch=4, slices=wanted, store=fetched
            )
    assert not fetched.taken


@pytest.mark.parametrize("messages", [4, 6, 9])
async def test_a_fetch_that_is_cut_goes_on_where_it_was(fleet: OpenFleet, messages: int) -> None:
    async with fleet(2, options=SMALL_PIECES) as workers:
        holder, loader = workers.workers
        store, fetched = ByteStore(160, rows=128, row_bytes=1 * KIB), CountingStore()
        holder.network.serve_weights(store)
        faults_of(loader).messages_until_cut = messages
        await loader.network.fetch_weights(
            source_address=holder.address, replica_epoch=1, slices=store.slices, store=fetched
        )
        assert faults_of(loader).messages_until_cut is None, "nothing was cut"
        assert missing(store.slices, fetched.content) == ()
        assert set(fetched.taken.values()) == {1}
        for slice_, content in fetched.content.items():
            assert content == store.bytes_of(slice_)


async def test_a_holder_that_freezes_is_an_error_in_bounded_time(fleet: OpenFleet) -> None:
    async with fleet(2, options=IMPATIENT) as workers:
        holder, loader = workers.workers
        store, fetched = ByteStore(8, rows=64, row_bytes=1 * KIB), CountingStore()
        holder.network.serve_weights(store)
        faults_of(holder).freeze()
        started_at_ns = time.monotonic_ns()
        with pytest.raises(Unavailable):
            await loader.network.fetch_weights(
                source_address=holder.address, replica_epoch=1, slices=store.slices, store=fetched
            )
        faults_of(holder).thaw()
        assert time.monotonic_ns() - started_at_ns < 3 * NS_PER_S


async def test_a_fetch_that_is_cancelled_stores_nothing_more(fleet: OpenFleet) -> None:
    async with fleet(2, options=SMALL_PIECES) as workers:
        holder, loader = workers.workers
        store, fetched = ByteStore(256, rows=128, row_bytes=1 * KIB), CountingStore()
        holder.network.serve_weights(store)
        fetching = asyncio.create_task(
            loader.network.fetch_weights(
                source_address=holder.address, replica_epoch=1, slices=store.slices, store=fetched
            )
        )
        await fetched.first_taken.wait()
        fetching.cancel()
        await asyncio.gather(fetching, return_exceptions=True)
        taken = sum(fetched.taken.values())
        again = CountingStore()
        await loader.network.fetch_weights(
            source_address=holder.address, replica_epoch=2, slices=store.slices, store=again
        )
        assert missing(store.slices, again.content) == ()
        # One buffer may have been on its way into the store when it was cancelled.
        assert sum(fetched.taken.values()) - taken <= BUFFER_PIECES
        assert missing(store.slices, fetched.content) != ()
