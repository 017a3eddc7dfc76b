"""A model cut into stages and shards, one process each, generates what it does whole."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from safetensors.torch import load_file, save_file

from libs.engine.batch_run import run_to_completion
from libs.engine.loading import EngineOptions, load_engine
from libs.engine.requests import SamplingOptions, SequenceRequest, StopOptions
from libs.engine.scheduler import Scheduler
from tests.integration.engine.replica_fleet import Fleet, form_replica

Generate = Callable[[Path, tuple[int, ...], int], list[int]]
TINY = Path(__file__).parents[3] / "models" / "tide-tiny"
NEW_TOKENS = 100
FAMILY_TOKENS = 60
FAMILY_STOP = StopOptions(max_tokens=FAMILY_TOKENS, ignore_eos=True)
SHAPES = [(1, 2), (2, 1), (2, 2), (3, 1), (1, 4)]
"""(stages, shards); of (replicas, stages, shards) only these two concern the engine."""


def a_request(name: str, tokens: int, sampling: SamplingOptions) -> SequenceRequest:
    rng = Random(tokens)
    return SequenceRequest(
        sequence_id=name,
        prompt_token_ids=tuple(rng.randrange(3, 380) for _ in range(tokens)),
        sampling=sampling,
        stop=StopOptions(max_tokens=NEW_TOKENS, ignore_eos=True),
    )


REQUESTS = [
    a_request("greedy", 20, SamplingOptions()),
    a_request("long", 90, SamplingOptions()),
    a_request("seeded", 33, SamplingOptions(temperature=1.0, seed=5)),
    a_request("filtered", 2, SamplingOptions(temperature=0.8, top_k=20, top_p=0.9, seed=6)),
]


def whole_tokens(folder: Path) -> dict[str, list[int]]:
    engine = load_engine(str(folder), options=EngineOptions(dtype="float32"))
    emitted = run_to_completion(Scheduler(engine.scheduler_options), engine.runner, REQUESTS)
    return {name: [token.token_id for token in tokens] for name, tokens in emitted.items()}


@pytest.fixture(scope="module")
def tiny_tokens() -> dict[str, list[int]]:
    return whole_tokens(TINY)


@pytest.mark.parametrize(("stages", "shards"), SHAPES)
def test_every_shape_of_the_bundled_model_generates_the_same(
    fleet: Fleet, tiny_tokens: dict[str, list[int]], stages: int, shards: int
) -> None:
    replica = form_replica(fleet, TINY, stages=stages, shards=shards, step_tokens_max=64)
    assert replica.run(REQUESTS) == tiny_tokens


def assert_as_transformers(
    fleet: Fleet, folder: Path, generate: Generate, *, stages: int, shards: int
) -> None:
    replica = form_replica(fleet, folder, stages=stages, shards=shards, step_tokens_max=64)
    got = replica.run([replace(request, stop=FAMILY_STOP) for request in REQUESTS[:2]])
    for request in REQUESTS[:2]:
        expected = generate(folder, request.prompt_token_ids, FAMILY_TOKENS)
        assert got[request.sequence_id] == expected, request.sequence_id
        assert len(set(expected)) > 10, "the model repeats itself: this would show little"


def test_every_family_generates_what_transformers_does(
    fleet: Fleet, model_folder: Path, generate: Generate
) -> None:
    assert_as_transformers(fleet, model_folder, generate, stages=2, shards=2)


def test_two_shards_may_hold_the_same_kv_head(
    fleet: Fleet, llama_folder: Path, generate: Generate
) -> None:
    assert_as_transformers(fleet, llama_folder, generate, stages=1, shards=4)


def test_a_perturbed_shard_is_noticed(fleet: Fleet, llama_folder: Path, tmp_path: Path) -> None:
    """The negative control: the last columns of one layer, which shard 1 holds, off by 2 %."""
    folder = shutil.copytree(llama_folder, tmp_path / "perturbed")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"][:, 64:] *= 1.02
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    replica = form_replica(fleet, folder, stages=1, shards=2)
    assert replica.run(REQUESTS) != whole_tokens(llama_folder)
