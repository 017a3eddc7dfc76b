"""A profile that nobody measured: plausible where it matters for the choice of a shape."""

import pytest

from libs.kernel.units import MIB
from libs.policy.assumed_profile import CPU, GPU, Roofline, assumed_profile
from libs.policy.cost_model import execution_ns
from libs.policy.model_profile import ModelBytes, ModelProfile
from libs.policy.parallel_config import Candidate, ConfigSearch, SearchOptions, Workload
from libs.policy.shapes import ReplicaShape


def a_profile(roofline: Roofline, *, layer_mib: int, layers: int = 32) -> ModelProfile:
    size = ModelBytes(
        layers=layers, heads=32, kv_heads=8, layer_bytes=layer_mib * MIB, embedding_bytes=MIB,
        head_bytes=MIB, kv_bytes_per_token_layer=4096,
    )  # fmt: skip
    return assumed_profile(
        name="m", size=size, bytes_per_parameter=2, context_tokens_max=4096, roofline=roofline
    )


def test_a_large_model_on_gpus_is_faster_on_more_shards() -> None:
    profile = a_profile(GPU, layer_mib=1_600, layers=80)
    times = [
        execution_ns(profile, ReplicaShape(stages=1, shards=shards), batch=1)
        for shards in (1, 2, 4, 8)
    ]
    assert times == sorted(times, reverse=True)
    assert times[3] > times[0] / 8  # the all-reduces cost something


def test_a_small_model_on_a_cpu_is_slower_on_more_shards() -> None:
    profile = a_profile(CPU, layer_mib=1, layers=4)
    alone, two = (
        execution_ns(profile, ReplicaShape(stages=1, shards=shards), batch=1) for shards in (1, 2)
    )
    assert alone < two


@pytest.mark.parametrize("workers", [1, 2, 3, 5, 8])
def test_a_small_model_gets_one_worker_per_replica_and_all_workers_serve(workers: int) -> None:
    found = ConfigSearch(
        profile=a_profile(CPU, layer_mib=1, layers=4),
        workload=Workload(requests_per_s=0.5),
        workers=workers,
        memory_bytes=None,
        options=SearchOptions(),
    ).choose()
    assert isinstance(found, Candidate)
    assert (found.config.replicas, found.config.shape.workers) == (workers, 1)


def test_a_model_beyond_one_workers_memory_is_cut_into_as_few_parts_as_fit() -> None:
    profile = a_profile(CPU, layer_mib=8, layers=16)
    found = ConfigSearch(
        profile=profile,
        workload=Workload(requests_per_s=0.5),
        workers=4,
        memory_bytes=profile.size.weight_bytes * 3 // 4 + 4096 * 4096 * 16,
        options=SearchOptions(),
    ).choose()
    assert isinstance(found, Candidate)
    assert (found.config.replicas, found.config.shape.workers) == (2, 2)


def test_kv_of_the_longest_request_counts_as_needed() -> None:
    profile = a_profile(CPU, layer_mib=1, layers=4)
    kv_bytes = 4096 * 4096 * 4
    enough = profile.size.weight_bytes + kv_bytes
    options = SearchOptions()
    for memory_bytes, fits in ((enough, True), (enough - 1, False)):
        found = ConfigSearch(
            profile=profile,
            workload=Workload(requests_per_s=0.1),
            workers=1,
            memory_bytes=memory_bytes,
            options=options,
        ).choose()
        assert isinstance(found, Candidate) is fits
