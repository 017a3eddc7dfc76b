"""Algorithm 1 against the configurations printed in the paper's figure 8, and its refusals."""

from dataclasses import replace

import pytest

from libs.kernel.units import MIB
from libs.policy.cost_model import batch_times
from libs.policy.model_profile import LayerTimes, ModelBytes, ModelProfile
from libs.policy.paper_profiles import GPT_20B, LLAMA_30B, OPT_6_7B, T4_BYTES
from libs.policy.parallel_config import (
    PAPER_SEARCH,
    Candidate,
    ConfigSearch,
    NoShapeFits,
    SearchOptions,
    Workload,
)
from libs.policy.shapes import ReplicaShape

GPUS_PER_NODE = 4
GOLDEN = {
    0.4: {3: (1, 3, 4), 4: (1, 2, 8), 5: (1, 2, 8), 6: (2, 3, 4), 7: (2, 3, 4), 8: (2, 2, 8),
          9: (2, 2, 8), 10: (2, 2, 8), 11: (2, 2, 8), 12: (3, 2, 8)},
    0.6: {7: (2, 3, 4), 8: (2, 2, 8), 9: (2, 2, 8), 10: (2, 2, 8), 12: (3, 2, 8)},
    0.8: {9: (3, 3, 4), 10: (3, 3, 4), 12: (3, 2, 8)},
}  # fmt: skip


def chosen(
    profile: ModelProfile,
    *,
    workers: int,
    rate: float,
    memory_bytes: int | None = None,
    options: SearchOptions = PAPER_SEARCH,
) -> Candidate:
    found = a_search(
        profile, workers=workers, rate=rate, memory_bytes=memory_bytes, options=options
    ).choose()
    assert isinstance(found, Candidate), found
    return found


def a_search(
    profile: ModelProfile,
    *,
    workers: int,
    rate: float = 1.0,
    memory_bytes: int | None = None,
    options: SearchOptions | None = None,
) -> ConfigSearch:
    return ConfigSearch(
        profile=profile,
        workload=Workload(requests_per_s=rate),
        workers=workers,
        memory_bytes=memory_bytes,
        options=options or SearchOptions(),
    )


def a_small_model(*, layers: int = 4, heads: int = 4) -> ModelProfile:
    times = LayerTimes(prefill_ns=((1, 1_000_000),), decode_ns=((1, 100_000), (8, 120_000)))
    return ModelProfile(
        name="small",
        source="made up",
        size=ModelBytes(
            layers=layers,
            heads=heads,
            kv_heads=2,
            layer_bytes=8 * MIB,
            embedding_bytes=4 * MIB,
            head_bytes=4 * MIB,
            kv_bytes_per_token_layer=1024,
        ),
        times_by_shards={1: times, 2: times, 4: times},
        embedding_ns=((1, 10_000),),
        hop_prefill_ns=100_000,
        hop_decode_ns=10_000,
        prompt_tokens=96,
        output_tokens=32,
    )


@pytest.mark.parametrize(
    ("need", "nodes", "expected"),
    [(need, nodes, shape) for need, rows in GOLDEN.items() for nodes, shape in rows.items()],
)
def test_the_configurations_of_figure_8_are_chosen(
    need: float, nodes: int, expected: tuple[int, int, int]
) -> None:
    config = chosen(GPT_20B, workers=nodes * GPUS_PER_NODE, rate=need).config
    assert (config.replicas, config.shape.stages, config.shape.shards) == expected


@pytest.mark.parametrize(("profile", "workers"), [(OPT_6_7B, 4), (GPT_20B, 12), (LLAMA_30B, 16)])
def test_one_gpu_less_than_the_published_least_is_refused_with_the_number(
    profile: ModelProfile, workers: int
) -> None:
    chosen(profile, workers=workers, rate=0.1)
    refused = a_search(profile, workers=workers - 1, options=PAPER_SEARCH).choose()
    assert isinstance(refused, NoShapeFits)
    assert refused.workers_missing == 1
    assert f"at least {workers} workers" in refused.reason


def test_gpt_20b_fits_twelve_t4_by_its_bytes() -> None:
    config = chosen(GPT_20B, workers=12, rate=0.1, memory_bytes=T4_BYTES).config
    assert config.shape.workers == 12


def test_a_model_too_large_is_refused_with_the_bytes_that_are_missing() -> None:
    model = a_small_model()
    # Least per worker on one: 4 layers of 8 MiB, 8 MiB of ends, KV of 128 tokens in 4 layers.
    needed = 40 * MIB + 128 * 4 * 1024
    refused = a_search(model, workers=1, memory_bytes=needed - 1).choose()
    assert isinstance(refused, NoShapeFits)
    assert refused.bytes_missing == 1
    fits = a_search(model, workers=1, memory_bytes=needed).choose()
    assert isinstance(fits, Candidate)


def test_the_workspace_counts_as_memory_that_is_missing() -> None:
    options = SearchOptions(workspace_bytes=8 * MIB)
    search = a_search(a_small_model(), workers=1, memory_bytes=41 * MIB, options=options)
    refused = search.choose()
    assert isinstance(refused, NoShapeFits)
    assert refused.bytes_missing == 7 * MIB + 128 * 4 * 1024


def test_shards_divide_the_heads_and_stages_do_not_exceed_the_layers() -> None:
    model = a_small_model(layers=2, heads=2)
    options = SearchOptions()
    for workers in range(1, 20):
        config = chosen(model, workers=workers, rate=1, options=options).config
        assert config.shape.shards in (1, 2)
        assert config.shape.stages <= 2
        assert config.workers <= workers


def test_no_measured_degree_that_divides_the_heads_is_refused() -> None:
    model = replace(a_small_model(heads=3), times_by_shards={2: a_small_model().times_by_shards[2]})
    refused = a_search(model, workers=8).choose()
    assert isinstance(refused, NoShapeFits)
    assert "3 heads" in refused.reason
    assert "[2]" in refused.reason


def test_more_than_can_be_served_chooses_the_most_throughput() -> None:
    found = chosen(GPT_20B, workers=28, rate=100.0)
    assert not found.keeps_up
    assert (found.config.replicas, found.config.shape.stages) == (2, 3)


def test_one_fast_replica_is_not_chosen_where_requests_would_wait_for_it() -> None:
    # At 0.2/s one replica of (4, 8) runs at 64 %; three of (2, 8) serve slower and wait less.
    with_queue = replace(PAPER_SEARCH, has_queueing=True)
    alone = chosen(GPT_20B, workers=48, rate=0.2)
    several = chosen(GPT_20B, workers=48, rate=0.2, options=with_queue)
    assert (alone.config.replicas, alone.config.shape.workers) == (1, 32)
    assert (several.config.replicas, several.config.shape.workers) == (3, 16)
    assert several.execution_ns > alone.execution_ns


def test_the_fewest_workers_that_keep_up_are_wanted_if_not_all_are_used() -> None:
    few = replace(PAPER_SEARCH, uses_all_workers=False, near_tie_percent=5)
    config = chosen(GPT_20B, workers=48, rate=0.2, options=few).config
    assert (config.replicas, config.shape.stages, config.shape.shards) == (1, 2, 8)


def test_continuous_batching_takes_as_many_sequences_as_fit() -> None:
    model = a_small_model()
    options = SearchOptions(batches=(1, 2, 4, 8), shards_max=1)
    kv_bytes = 128 * 4 * 1024
    for fit, batch in ((1, 1), (3, 2), (8, 8), (100, 8)):
        memory_bytes = 40 * MIB + fit * kv_bytes
        config = chosen(
            model, workers=1, rate=0.1, memory_bytes=memory_bytes, options=options
        ).config
        assert config.batch == batch


def test_only_the_given_shape_is_considered() -> None:
    only = replace(PAPER_SEARCH, shape_only=ReplicaShape(stages=3, shards=4))
    assert chosen(GPT_20B, workers=48, rate=0.4, options=only).config.shape.stages == 3


def test_a_given_shape_that_the_model_cannot_take_is_refused_by_name() -> None:
    impossible = SearchOptions(shape_only=ReplicaShape(stages=9, shards=1))
    refused = a_search(a_small_model(), workers=20, options=impossible).choose()
    assert isinstance(refused, NoShapeFits)
    assert "no shape 9 x 1" in refused.reason


def test_near_equals_go_to_fewer_workers_or_where_all_are_used_to_more_throughput() -> None:
    # One replica of two stages would be near, and leave one of three workers idle.
    model = a_small_model()
    for uses_all, replicas in ((True, 3), (False, 1)):
        options = SearchOptions(uses_all_workers=uses_all, near_tie_percent=50, shards_max=1)
        config = chosen(model, workers=3, rate=0.1, options=options).config
        assert config.shape.workers == 1
        assert config.replicas == replicas


def test_micro_batches_of_our_own_profiles_take_the_time_of_all_of_them() -> None:
    alone = ReplicaShape(stages=1, shards=1)
    model = a_small_model()
    one = batch_times(model, alone, batch=1).prefill_ns
    assert batch_times(model, alone, batch=4).prefill_ns == 4 * one
    as_published = replace(model, is_prefill_amortised=True)
    assert batch_times(as_published, alone, batch=4).prefill_ns == one


def test_what_one_search_remembers_never_answers_another() -> None:
    profile = a_small_model()
    slow = LayerTimes(prefill_ns=((1, 9_000_000),), decode_ns=((1, 900_000),))
    slower = replace(profile, times_by_shards=dict.fromkeys(profile.times_by_shards, slow))
    assert hash(slower) == hash(profile)  # so that only equality tells them apart
    first = a_search(profile, workers=4).candidates()
    assert a_search(slower, workers=4).candidates() != first
    assert a_search(profile, workers=2).candidates() != first
    assert a_search(profile, workers=4, memory_bytes=30 * MIB).candidates() != first
    assert a_search(profile, workers=4, rate=300.0).candidates() != first
    assert a_search(profile, workers=4).candidates() == first
