"""The simulated H100 against what was published of real ones."""

import pytest

from libs.engine.steps import PlanEntry, StepPlan
from libs.kernel.rng import Rng
from libs.kernel.units import NS_PER_MS
from libs.policy.latency_model import StepWork
from services.simulator.coserve.device import Device, work_of
from services.simulator.coserve.h100 import (
    LAYER_PARAMETERS,
    LAYER_US,
    LINK,
    MODELS,
    H100Times,
    layer_us,
)

CHUNK = 2048


@pytest.mark.parametrize(("tokens_before", "published_ms"), [(0, 51), (40_000, 124)])
def test_a_chunk_on_llama_3_1_8b_takes_what_conserve_measured(
    tokens_before: int, published_ms: float
) -> None:
    work = StepWork().with_prefill(tokens=CHUNK, tokens_before=tokens_before)
    found_ms = H100Times(MODELS["llama-3.1-8b"]).predict_ns(work) / NS_PER_MS
    assert found_ms == pytest.approx(published_ms, rel=0.03)


def test_models_are_as_large_as_they_are_called_and_leave_room_for_kv() -> None:
    sizes = {name: model.weight_bytes / 2e9 for name, model in MODELS.items()}
    assert sizes["llama-2-7b"] == pytest.approx(6.7, abs=0.1)
    assert sizes["llama-3.1-8b"] == pytest.approx(8.0, abs=0.1)
    assert sizes["llama-3.1-70b"] == pytest.approx(70.6, abs=0.2)
    assert MODELS["llama-2-7b"].layer_parameters == LAYER_PARAMETERS
    assert MODELS["llama-3.1-8b"].kv_token_bytes == 128 * 1024
    assert MODELS["llama-3.1-70b"].kv_token_bytes == 80 * 1024
    assert all(model.kv_tokens > 100_000 for model in MODELS.values())


def test_a_layer_takes_what_the_table_says_and_between_its_points_something_between() -> None:
    for rows, measured_us in LAYER_US:
        assert layer_us(rows) == pytest.approx(measured_us)
    assert 378.5 < layer_us(600) < 593.0
    assert layer_us(5000) > layer_us(4096)


def an_entry(*, tokens: int, start: int) -> PlanEntry:
    return PlanEntry(
        sequence_id="a",
        token_ids=(1,) * tokens,
        start_position=start,
        block_table=(),
        is_sampling=True,
        output_index=0,
    )


def test_the_work_of_a_plan_is_what_the_budget_counts() -> None:
    entries = [an_entry(tokens=1, start=100), an_entry(tokens=64, start=32)]
    expected = StepWork().with_decode(tokens_before=100).with_prefill(tokens=64, tokens_before=32)
    assert work_of(entries) == expected


def test_safepoints_add_to_a_step_and_one_after_the_last_layer_does_not_exist() -> None:
    times = H100Times(MODELS["llama-2-7b"])
    device = Device(times=times, layers=32, link=LINK, safepoint_ns=1000)
    noise = Rng(1)
    plan = StepPlan(step_id=0, entries=(an_entry(tokens=8, start=0),), opened=(), closed=())
    whole_ns = times.predict_ns(work_of(plan.entries))
    assert device.duration_ns(plan, noise=noise) == whole_ns
    for spacing, checks in ((4, 7), (5, 6), (32, 0), (100, 0)):
        spaced = StepPlan(
            step_id=0,
            entries=plan.entries,
            opened=(),
            closed=(),
            layers_between_safepoints=spacing,
        )
        assert device.duration_ns(spaced, noise=noise) == whole_ns + checks * 1000
