"""When a step without online work is given up, and how far apart its safepoints lie."""

from collections.abc import Callable
from typing import Any

import pytest

from libs.engine.scheduler import StepResult
from libs.engine.scheduling.coserve import Coserve
from libs.engine.steps import StepPlan
from libs.kernel.errors import InvariantViolation

EngineBuilder = Callable[..., Any]


def an_offline_step(engine: Any) -> StepPlan:
    """Begin a step of 64 tokens, which takes 64 ms."""
    engine.add("offline", offline=True, tokens=150)
    plan: StepPlan = engine.plan()
    assert sum(len(entry.token_ids) for entry in plan.entries) == 64
    return plan


def test_a_step_is_given_up_for_one_who_would_be_late_and_only_once(
    an_engine: EngineBuilder,
) -> None:
    engine = an_engine(layers=16, ttft_slo_ms=80)
    plan = an_offline_step(engine)
    assert engine.scheduler.step_to_yield(now_ns=engine.now_ns) is None
    engine.add("online", tokens=30)
    # 64 ms until the step ends and 30 for the prompt: later than 80.
    assert engine.scheduler.step_to_yield(now_ns=engine.now_ns) == plan.step_id
    assert engine.scheduler.step_to_yield(now_ns=engine.now_ns) is None


def test_a_step_runs_on_for_one_who_is_in_time_after_it(an_engine: EngineBuilder) -> None:
    engine = an_engine(layers=16, ttft_slo_ms=80)
    an_offline_step(engine)
    engine.now_ms += 60
    engine.add("online", tokens=30)
    assert engine.scheduler.step_to_yield(now_ns=engine.now_ns) is None


def test_prompts_that_wait_before_it_count(an_engine: EngineBuilder) -> None:
    engine = an_engine(layers=16, ttft_slo_ms=80)
    an_offline_step(engine)
    engine.now_ms += 60
    for number in range(3):
        engine.add(f"online{number}", tokens=30)
    assert engine.scheduler.step_to_yield(now_ns=engine.now_ns) is not None


def test_a_step_is_not_given_up_for_offline_work(an_engine: EngineBuilder) -> None:
    engine = an_engine(layers=16, ttft_slo_ms=80)
    an_offline_step(engine)
    engine.add("more", offline=True, tokens=100)
    assert engine.scheduler.step_to_yield(now_ns=engine.now_ns) is None


def test_a_step_is_not_given_up_for_one_who_could_not_be_admitted(
    an_engine: EngineBuilder,
) -> None:
    engine = an_engine(layers=16, ttft_slo_ms=80, enable_prefix_cache=True)
    engine.scheduler.reserve_imports("copy", list(range(24)))
    an_offline_step(engine)
    engine.add("online", tokens=180)
    assert engine.scheduler.step_to_yield(now_ns=engine.now_ns) is None


def test_a_step_with_online_work_has_no_safepoints(an_engine: EngineBuilder) -> None:
    engine = an_engine(layers=16, ttft_slo_ms=80)
    engine.add("online")
    engine.add("offline", offline=True, tokens=150)
    assert engine.plan().layers_between_safepoints is None
    engine.add("late", tokens=60)
    assert engine.scheduler.step_to_yield(now_ns=engine.now_ns) is None


def test_a_step_is_given_up_early_for_one_who_gains_much_more_by_it(
    an_engine: EngineBuilder,
) -> None:
    engine = an_engine(layers=16, ttft_slo_ms=1000)
    plan = an_offline_step(engine)
    engine.now_ms += 21
    engine.add("online")
    # 43 ms of waiting spared for 21 ms of work lost: twice as much.
    assert engine.scheduler.step_to_yield(now_ns=engine.now_ns) == plan.step_id


def test_a_step_is_not_given_up_early_when_much_of_it_is_done(an_engine: EngineBuilder) -> None:
    engine = an_engine(layers=16, ttft_slo_ms=1000)
    an_offline_step(engine)
    engine.now_ms += 22
    engine.add("online")
    assert engine.scheduler.step_to_yield(now_ns=engine.now_ns) is None


def test_all_who_wait_gain_when_a_step_is_given_up_early(an_engine: EngineBuilder) -> None:
    engine = an_engine(layers=16, ttft_slo_ms=1000)
    plan = an_offline_step(engine)
    engine.now_ms += 22
    engine.add("one")
    assert engine.scheduler.step_to_yield(now_ns=engine.now_ns) is None
    engine.add("two")
    assert engine.scheduler.step_to_yield(now_ns=engine.now_ns) == plan.step_id


def test_conserve_gives_no_step_up_that_keeps_nobody_too_long(an_engine: EngineBuilder) -> None:
    engine = an_engine(policy=Coserve.CONSERVE, layers=16, ttft_slo_ms=1000)
    an_offline_step(engine)
    engine.add("online")
    assert engine.scheduler.step_to_yield(now_ns=engine.now_ns) is None


@pytest.mark.parametrize(("layers", "spacing"), [(16, 1), (32, 1), (64, 2), (80, 2)])
def test_safepoints_lie_as_close_as_costs_nothing(
    an_engine: EngineBuilder, layers: int, spacing: int
) -> None:
    # A step of 64 ms has about 32 groups, of 2 ms each.
    engine = an_engine(layers=layers)
    assert an_offline_step(engine).layers_between_safepoints == spacing


def test_a_step_has_safepoints_however_short_if_it_would_hold_somebody_too_long(
    an_engine: EngineBuilder,
) -> None:
    # A twelfth of the SLO by a margin of 1.2: 0.83 ms, a fourth of the step.
    engine = an_engine(layers=16, ttft_slo_ms=12)
    engine.add("offline", offline=True, tokens=3)
    assert engine.plan().layers_between_safepoints == 4


def test_a_step_that_is_over_at_once_has_no_safepoints(an_engine: EngineBuilder) -> None:
    engine = an_engine(layers=16)
    engine.add("offline", offline=True, tokens=3)
    assert engine.plan().layers_between_safepoints is None


def test_conserve_has_one_every_four_layers(an_engine: EngineBuilder) -> None:
    engine = an_engine(policy=Coserve.CONSERVE, layers=16, ttft_slo_ms=1000)
    assert an_offline_step(engine).layers_between_safepoints == 4


def test_a_step_that_cannot_yield_is_no_longer_than_an_online_session_may_be_held(
    an_engine: EngineBuilder,
) -> None:
    engine = an_engine(layers=None, ttft_slo_ms=288)
    engine.add("offline", offline=True, tokens=150)
    plan = engine.plan()
    assert plan.layers_between_safepoints is None
    assert sum(len(entry.token_ids) for entry in plan.entries) == 20


def test_nor_does_offline_work_add_more_than_that_to_a_step_with_online_work(
    an_engine: EngineBuilder,
) -> None:
    engine = an_engine(layers=16, ttft_slo_ms=288, tbt_slo_ms=1000)
    engine.add("online")
    engine.step()
    engine.add("offline", offline=True, tokens=150)
    # 24 ms by a margin of 1.2, beside one for the next online token.
    assert engine.step() == {"online": 1, "offline": 20}


def test_nothing_joins_a_step_that_works_on_an_online_prompt(an_engine: EngineBuilder) -> None:
    engine = an_engine(layers=16, ttft_slo_ms=1000, tbt_slo_ms=1000)
    engine.add("answering", tokens=4)
    engine.step()
    engine.add("offline", offline=True, tokens=150)
    engine.add("arriving", tokens=70)
    assert engine.step() == {"answering": 1, "arriving": 63}
    assert engine.step() == {"answering": 1, "arriving": 7}
    assert set(engine.step()) == {"answering", "arriving", "offline"}


def test_conserve_fills_it_with_all_that_the_next_tokens_leave(an_engine: EngineBuilder) -> None:
    engine = an_engine(policy=Coserve.CONSERVE, layers=16, ttft_slo_ms=384, tbt_slo_ms=1000)
    engine.add("online")
    engine.add("offline", offline=True, tokens=150)
    assert [len(entry.token_ids) for entry in engine.plan().entries] == [4, 60]


def test_a_step_that_yielded_is_planned_again_as_if_it_had_not_been(
    an_engine: EngineBuilder,
) -> None:
    engine = an_engine(layers=16, ttft_slo_ms=80)
    plan = an_offline_step(engine)
    engine.runner.request_yield(plan.step_id)
    engine.finish(plan)
    again = engine.plan()
    assert (again.step_id, again.entries, again.opened) == (plan.step_id + 1, plan.entries, ())
    tally = engine.scheduler.tally
    assert (tally.steps_yielded, tally.tokens_yielded, tally.tokens_offline) == (1, 64, 0)


def test_an_abort_in_a_step_that_yields_takes_effect(an_engine: EngineBuilder) -> None:
    engine = an_engine(layers=16, ttft_slo_ms=80)
    plan = an_offline_step(engine)
    assert engine.scheduler.abort("offline")
    engine.runner.request_yield(plan.step_id)
    engine.finish(plan)
    assert not engine.scheduler.knows("offline")
    assert engine.scheduler.load().blocks_free == 64


def test_a_step_without_safepoints_cannot_have_yielded(an_engine: EngineBuilder) -> None:
    engine = an_engine(layers=None)
    engine.add("offline", offline=True)
    plan = engine.plan()
    result = StepResult(step_id=plan.step_id, sampled=(), is_yielded=True)
    with pytest.raises(InvariantViolation, match="could not yield"):
        engine.scheduler.account(result, now_ns=0)
