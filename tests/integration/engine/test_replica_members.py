"""What a worker asks of a position before it has one."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from libs.contracts.reports import MemoryRule
from libs.engine.batch_run import run_to_completion
from libs.engine.checkpoint import Checkpoint
from libs.engine.loading import EngineOptions
from libs.engine.model_config import ModelLoadError, VariantNotSupported
from libs.engine.parallel.member import new_attention, read_replica_model
from libs.engine.parallel.memory_needs import ReplicaMemory
from libs.engine.parallel.position import position_at, positions_of
from libs.engine.parallel.slices import all_slices_of
from libs.engine.requests import SamplingOptions, SequenceRequest, StopOptions
from libs.engine.scheduler import Scheduler
from libs.policy.shapes import ReplicaShape
from tests.integration.engine.replica_member import build_member

OPTIONS = EngineOptions(dtype="float32")


def test_no_more_blocks_are_wanted_than_can_ever_be_used(llama_folder: Path) -> None:
    options = EngineOptions(dtype="float32", sequences_max=3)
    model = read_replica_model(str(llama_folder), options=options)
    assert model.blocks_useful == 3 * 512 // 16


@pytest.mark.parametrize("shape", [(1, 1), (3, 1), (2, 2), (1, 4)])
def test_memory_is_reckoned_as_a_position_takes_it(
    llama_folder: Path, shape: tuple[int, int]
) -> None:
    model = read_replica_model(str(llama_folder), options=OPTIONS)
    stages, shards = shape
    memory = ReplicaMemory(
        config=model.config,
        rule=MemoryRule(element_bytes=4),
        block_tokens=16,
        context_tokens_max=64,
    )
    stores = []
    kv_bytes = []
    with Checkpoint(llama_folder) as checkpoint:
        for position in positions_of(model.config, stages=stages, shards=shards):
            store = model.new_store()
            store.load(all_slices_of(model.config, position, element_bytes=4), checkpoint)
            stores.append(store.memory_bytes)
            kv_bytes.append(model.kv_shape(position, blocks=1).bytes_total(torch.float32))
    needs = memory.stages(ReplicaShape(stages=stages, shards=shards))
    assert max(need.weights_bytes for need in needs) == max(stores)
    assert max(need.kv_block_bytes for need in needs) == max(kv_bytes)


def test_a_family_that_only_transformers_knows_cannot_be_cut(
    llama_folder: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(llama_folder, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "gemma2"}))
    with pytest.raises(VariantNotSupported, match="gemma2"):
        read_replica_model(str(folder), options=OPTIONS)


def test_too_few_blocks_are_refused(llama_folder: Path) -> None:
    model = read_replica_model(str(llama_folder), options=OPTIONS)
    position = position_at(model.config, stages=1, shards=1, stage=0, shard=0)
    with pytest.raises(ModelLoadError, match="cannot hold a sequence"):
        new_attention(model, position, kv_blocks=0)


@pytest.mark.parametrize("pack_linears", [True, False])
def test_a_position_alone_runs_without_a_group_packed_or_not(
    llama_folder: Path, pack_linears: bool
) -> None:
    options = EngineOptions(dtype="float32", pack_linears=pack_linears)
    model = read_replica_model(str(llama_folder), options=options)
    position = position_at(model.config, stages=1, shards=1, stage=0, shard=0)
    member = build_member(model, position, model.new_store(), kv_blocks=64, tokens_min=1)
    request = SequenceRequest(
        sequence_id="s",
        prompt_token_ids=tuple(range(3, 30)),
        sampling=SamplingOptions(),
        stop=StopOptions(max_tokens=12, ignore_eos=True),
    )
    scheduler = Scheduler(member.scheduler_options)
    tokens = run_to_completion(scheduler, member.runner, [request])["s"]
    assert len(tokens) == 12


def test_a_position_of_several_refuses_to_run_without_its_group(llama_folder: Path) -> None:
    model = read_replica_model(str(llama_folder), options=OPTIONS)
    position = position_at(model.config, stages=1, shards=2, stage=0, shard=0)
    member = build_member(model, position, model.new_store(), kv_blocks=64, tokens_min=1)
    scheduler = Scheduler(member.scheduler_options)
    scheduler.add(
        SequenceRequest(
            sequence_id="s",
            prompt_token_ids=(1, 2),
            sampling=SamplingOptions(),
            stop=StopOptions(max_tokens=1),
        ),
        now_ns=0,
    )
    plan = scheduler.schedule(now_ns=0)
    assert plan is not None
    with pytest.raises(AssertionError, match="no group"):
        member.runner.run(plan)
