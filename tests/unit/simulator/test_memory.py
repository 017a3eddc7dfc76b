"""What does not fit a GPU by the live workers' rule is not run, in the simulator either."""

from dataclasses import replace

import pytest

from libs.kernel.errors import ConfigError
from libs.kernel.units import MIB
from libs.policy.paper_profiles import PAPER_PROFILES
from libs.policy.parallel_config import Candidate, ConfigSearch, Workload
from libs.policy.shapes import ReplicaShape
from services.simulator.spot.options import SpotRunOptions
from services.simulator.spot.paper_models import PAPER_MODELS, WORKSPACE_BYTES
from services.simulator.spot.run import run_spot
from services.simulator.spot.setting import PolicyName, Setting, run_options


def on_gpus_of(mib: int, *, model: str = "gpt-20b") -> SpotRunOptions:
    options = run_options(Setting(policy=PolicyName.TIDESERVE, model=model))
    return replace(options, hardware=replace(options.hardware, gpu_bytes=mib * MIB))


@pytest.mark.parametrize("model", list(PAPER_MODELS))
def test_configs_have_the_bytes_of_the_published_profiles(model: str) -> None:
    memory = run_options(Setting(policy=PolicyName.TIDESERVE, model=model)).memory
    assert memory is not None
    weights = max(stage.weights_bytes for stage in memory.stages(ReplicaShape(stages=1, shards=1)))
    assert weights == pytest.approx(PAPER_PROFILES[model].size.weight_bytes, rel=0.04)


@pytest.mark.parametrize("model", list(PAPER_MODELS))
def test_the_papers_least_replicas_fit_a_t4_and_nothing_fits_a_quarter_of_it(model: str) -> None:
    options = run_options(Setting(policy=PolicyName.TIDESERVE, model=model))
    memory = options.memory
    assert memory is not None
    least = {"opt-6.7b": (1, 4), "gpt-20b": (3, 4), "llama-30b": (2, 8)}[model]
    shape = ReplicaShape(stages=least[0], shards=least[1])
    memory_bytes = options.hardware.gpu_bytes - WORKSPACE_BYTES
    tokens = memory.blocks_that_fit(shape, memory_bytes=memory_bytes) * memory.block_tokens
    assert tokens > 8 * options.context_tokens_max
    assert memory.blocks_that_fit(shape, memory_bytes=memory_bytes // 4) == 0


def test_a_fleet_whose_gpus_hold_no_shape_is_refused_by_how_much() -> None:
    with pytest.raises(ConfigError, match=r"does not fit 40 workers of 1024 MiB: .* MiB more"):
        run_spot(on_gpus_of(1_024))


def test_smaller_gpus_leave_fewer_shapes_and_smaller_batches() -> None:
    def found(mib: int) -> dict[ReplicaShape, int]:
        options = on_gpus_of(mib)
        search = ConfigSearch(
            profile=options.profile,
            workload=Workload(requests_per_s=0.35),
            workers=24,
            memory_bytes=mib * MIB,
            options=options.plan.search,
            memory=options.memory,
        )
        candidates: list[Candidate] = search.candidates()
        return {c.config.shape: c.config.batch for c in candidates}

    large, small = found(15_109), found(7_000)
    assert set(small) < set(large)
    assert ReplicaShape(stages=3, shards=4) not in small
    wider = ReplicaShape(stages=2, shards=8)
    assert small[wider] < large[wider]
