"""Tenants share what offline service there is."""

from collections.abc import Callable
from typing import Any

import pytest

from libs.engine.scheduling.fair_shares import FairShares, cost_of
from libs.kernel.errors import InvariantViolation

EngineBuilder = Callable[..., Any]


def test_a_newcomer_begins_where_the_least_served_is() -> None:
    shares = FairShares()
    shares.join("a")
    shares.join("b")
    shares.charge("a", 70)
    shares.charge("b", 50)
    shares.join("new")
    assert shares.served("new") == 50


def test_time_away_is_no_credit_and_being_ahead_is_not_forgiven() -> None:
    shares = FairShares()
    for tenant in ("a", "b", "c"):
        shares.join(tenant)
    for tenant, cost in (("a", 70), ("b", 50), ("c", 10)):
        shares.charge(tenant, cost)
    shares.leave("a")
    shares.leave("c")
    shares.join("a")
    shares.join("c")
    assert (shares.served("a"), shares.served("c")) == (70, 50)


def test_the_first_after_all_left_goes_on_where_the_last_one_was() -> None:
    shares = FairShares()
    shares.join("a")
    shares.charge("a", 30)
    shares.leave("a")
    shares.join("b")
    assert shares.served("b") == 30


def test_a_second_sequence_changes_nothing_and_a_last_one_that_was_never_there_is_our_bug() -> None:
    shares = FairShares()
    shares.join("a")
    shares.charge("a", 5)
    shares.join("a")
    shares.leave("a")
    assert shares.served("a") == 5
    with pytest.raises(InvariantViolation, match="has no sequence"):
        shares.leave("b")


@pytest.mark.parametrize(
    ("first", "end", "cost"),
    [(0, 10, 10), (0, 12, 14), (10, 12, 4), (8, 11, 4), (12, 12, 0), (9, 8, 0)],
)
def test_a_generated_token_costs_as_much_as_two_of_the_prompt(
    first: int, end: int, cost: int
) -> None:
    assert cost_of(prompt_tokens=10, first=first, end=end) == cost


def test_the_tenant_served_least_is_admitted_next(an_engine: EngineBuilder) -> None:
    engine = an_engine(sequences_max=1)
    for number in range(3):
        engine.add(f"a{number}", offline=True, tenant="a", tokens=20, max_tokens=1)
    for number in range(2):
        engine.add(f"b{number}", offline=True, tenant="b", tokens=20, max_tokens=1)
    order = [next(iter(engine.step())) for _ in range(5)]
    assert order == ["a0", "b0", "a1", "b1", "a2"]


def test_a_higher_priority_goes_before_any_share(an_engine: EngineBuilder) -> None:
    engine = an_engine(sequences_max=1)
    engine.add("patient", tenant="a", priority=-10, max_tokens=1)
    for number in range(2):
        engine.add(f"urgent{number}", tenant="b", priority=-2, tokens=30, max_tokens=1)
    assert [next(iter(engine.step())) for _ in range(3)] == ["urgent0", "urgent1", "patient"]


def test_nobody_is_charged_twice_for_what_an_eviction_made_compute_again(
    an_engine: EngineBuilder,
) -> None:
    engine = an_engine(blocks_total=8, context_tokens_max=32)
    engine.add("offline", offline=True, tenant="a", tokens=20)
    engine.step()
    shares = engine.scheduler._roster.shares
    assert shares.served("a") == 20
    engine.add("online", tokens=20, max_tokens=1)
    engine.step()
    assert engine.scheduler.waiting_offline_ids() == ("offline",)
    engine.step()
    assert engine.scheduler.tally.tokens_repeated == 20
    assert shares.served("a") == 20 + 2, "the answer's first token alone is new"


def test_a_step_that_yields_is_not_charged(an_engine: EngineBuilder) -> None:
    engine = an_engine(layers=16, ttft_slo_ms=80)
    engine.add("offline", offline=True, tenant="a", tokens=60)
    plan = engine.plan()
    engine.runner.request_yield(plan.step_id)
    engine.finish(plan)
    assert engine.scheduler._roster.shares.served("a") == 0
