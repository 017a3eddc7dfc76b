"""Which weights a position fetches, from whom, and in which order."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from libs.contracts.handover import LoadWeights, WeightsFrom
from libs.engine.model_config import ModelConfig, read_model_config
from libs.engine.parallel.position import positions_of
from libs.engine.parallel.slices import all_slices_of
from libs.kernel.units import MIB
from services.gpu_worker.weight_plan import WeightPlan, plan_weights

A = Callable[..., Any]
MODEL = Path(__file__).parents[4] / "models" / "tide-tiny"
ELEMENT_BYTES = 4


@pytest.fixture(scope="module")
def config() -> ModelConfig:
    return read_model_config(MODEL)


def slices_at(config: ModelConfig, *, stages: int, shards: int, rank: int) -> Any:
    position = positions_of(config, stages=stages, shards=shards)[rank]
    return all_slices_of(config, position, element_bytes=ELEMENT_BYTES)


def bytes_of(slices: Any) -> int:
    return sum(slice_.bytes for slice_ in slices)


def a_plan(config: ModelConfig, target: Any, *, worker_id: str, held: Any, **fields: Any) -> Any:
    message = LoadWeights(
        handover_id="h",
        handover_epoch=1,
        migrator_id="m",
        op_id="op",
        plan_revision=1,
        replica_id=target.replica_id,
        buffer_bytes_max=MIB,
        **{"targets": (target,), **fields},
    )
    return plan_weights(
        message,
        worker_id=worker_id,
        target=target,
        held=held,
        config=config,
        element_bytes=ELEMENT_BYTES,
    )


def fetched(plan: WeightPlan) -> dict[str, int]:
    """Bytes by source; "disk" among them."""
    found: dict[str, int] = {}
    for batch in plan.batches:
        for peer, slices in batch.from_peers.items():
            found[peer] = found.get(peer, 0) + bytes_of(slices)
        if batch.from_disk:
            found["disk"] = found.get("disk", 0) + bytes_of(batch.from_disk)
    return found


def test_a_newcomer_fetches_its_half_from_the_one_that_has_all(
    config: ModelConfig, a_roster: A
) -> None:
    before = a_roster("r-1", "w-1")
    after = a_roster("r-2", "w-1", "w-2", shards=2, epoch=2)
    half = bytes_of(slices_at(config, stages=1, shards=2, rank=1))
    plan = a_plan(config, after, worker_id="w-2", held=(), holders=(before,))
    assert fetched(plan) == {"w-1": half}
    assert (plan.bytes_planned, plan.bytes_kept) == (half, 0)
    assert plan.address_by_peer == {"w-1": "loopback://w-1"}
    whole = slices_at(config, stages=1, shards=1, rank=0)
    stayer = a_plan(config, after, worker_id="w-1", held=whole, holders=(before,))
    first_half = bytes_of(slices_at(config, stages=1, shards=2, rank=0))
    assert (stayer.batches, stayer.bytes_planned, stayer.bytes_kept) == ((), 0, first_half)


def test_several_holders_share_the_work(config: ModelConfig, a_roster: A) -> None:
    before = (a_roster("r-1", "w-1"), a_roster("r-2", "w-2"))
    after = a_roster("r-3", "w-3", epoch=2)
    plan = a_plan(config, after, worker_id="w-3", held=(), holders=before)
    shares = fetched(plan)
    assert set(shares) == {"w-1", "w-2"}
    assert abs(shares["w-1"] - shares["w-2"]) < plan.bytes_planned // 2


@pytest.mark.parametrize("fields", [{}, {"weights_from": WeightsFrom.DISK}])
def test_without_a_holder_or_at_a_restart_all_comes_from_disk(
    config: ModelConfig, a_roster: A, fields: dict[str, Any]
) -> None:
    holders = (a_roster("r-1", "w-1"),) if fields else ()
    target = a_roster("r-2", "w-2", epoch=2)
    plan = a_plan(config, target, worker_id="w-2", held=(), holders=holders, **fields)
    assert fetched(plan) == {"disk": bytes_of(slices_at(config, stages=1, shards=1, rank=0))}


def test_what_a_roster_promises_and_is_not_here_comes_from_disk(
    config: ModelConfig, a_roster: A
) -> None:
    before, after = a_roster("r-1", "w-1"), a_roster("r-2", "w-1", epoch=2)
    held = slices_at(config, stages=2, shards=1, rank=0)
    plan = a_plan(config, after, worker_id="w-1", held=held, holders=(before,))
    whole = bytes_of(slices_at(config, stages=1, shards=1, rank=0))
    assert fetched(plan) == {"disk": whole - bytes_of(held)}
    assert plan.bytes_kept == bytes_of(held)


def test_layers_come_in_the_order_that_is_asked_for(config: ModelConfig, a_roster: A) -> None:
    before, after = a_roster("r-1", "w-1"), a_roster("r-2", "w-2", epoch=2)
    plan = a_plan(
        config, after, worker_id="w-2", held=(), holders=(before,), layer_order=(3, 1, 99)
    )
    tensors = [s.tensor for batch in plan.batches for s in batch.from_peers["w-1"]]
    layers = [int(part) for t in tensors for part in t.split(".") if part.isdigit()]
    assert list(dict.fromkeys(layers)) == [3, 1, 0, 2]
    assert len(plan.batches) > 1, "small layers go together, not all of them"
