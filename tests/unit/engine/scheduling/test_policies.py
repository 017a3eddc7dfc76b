"""What each policy does with one online and some offline sequences."""

from collections.abc import Callable
from typing import Any

import pytest

from libs.engine.scheduling.coserve import POLICIES, Coserve

EngineBuilder = Callable[..., Any]
ONLINE_FIRST = [name for name, policy in POLICIES.items() if policy.is_online_first]
SERVING_OFFLINE = [name for name, policy in POLICIES.items() if policy.admits_offline]


@pytest.mark.parametrize("policy", list(Coserve))
def test_every_policy_ends_all_that_it_admits(an_engine: EngineBuilder, policy: Coserve) -> None:
    engine = an_engine(policy=policy)
    for number in range(3):
        engine.add(f"online{number}", max_tokens=5)
        engine.add(f"offline{number}", offline=True, max_tokens=5)
    engine.run_until_idle()
    left = engine.scheduler.sequence_ids
    assert left == (() if policy in SERVING_OFFLINE else ("offline0", "offline1", "offline2"))


@pytest.mark.parametrize("policy", ONLINE_FIRST)
def test_online_work_is_planned_before_offline_work(
    an_engine: EngineBuilder, policy: Coserve
) -> None:
    engine = an_engine(policy=policy)
    engine.add("offline", offline=True)
    engine.add("online")
    assert next(iter(engine.step())) == "online"


def test_offline_work_fills_the_slack_and_not_more(an_engine: EngineBuilder) -> None:
    engine = an_engine(policy=Coserve.CONSERVE)
    engine.add("online")
    engine.step()
    engine.add("offline", offline=True, tokens=100)
    # 24 ms until the next token, a fixed margin of 1.2: 20 tokens, one of them the online one.
    assert engine.step() == {"online": 1, "offline": 19}


def test_a_late_online_sequence_leaves_no_slack(an_engine: EngineBuilder) -> None:
    engine = an_engine()
    engine.add("online")
    engine.step()
    engine.now_ms += 30
    engine.add("offline", offline=True, tokens=100)
    assert engine.step() == {"online": 1}
    assert engine.step()["offline"] > 0


def test_a_prompt_in_chunks_leaves_what_its_first_token_can_spare(
    an_engine: EngineBuilder,
) -> None:
    engine = an_engine(policy=Coserve.CONSERVE, step_tokens_max=200, ttft_slo_ms=120)
    engine.add("online", tokens=80)
    engine.add("offline", offline=True, tokens=150)
    assert engine.step() == {"online": 80, "offline": 20}


def test_fixed_chunk_ignores_the_slo(an_engine: EngineBuilder) -> None:
    engine = an_engine(policy=Coserve.FIXED_CHUNK, chunk_tokens=40, tbt_slo_ms=5)
    engine.add("online")
    engine.step()
    engine.add("offline", offline=True, tokens=100)
    assert engine.step() == {"online": 1, "offline": 39}


def test_non_preemptive_serves_in_the_order_of_arrival(an_engine: EngineBuilder) -> None:
    engine = an_engine(policy=Coserve.NON_PREEMPTIVE, sequences_max=1)
    engine.add("offline", offline=True, max_tokens=1)
    engine.add("online", max_tokens=1)
    assert engine.step() == {"offline": 4}
    assert engine.step() == {"online": 4}


def test_priority_recompute_lets_a_running_offline_sequence_keep_its_place(
    an_engine: EngineBuilder,
) -> None:
    engine = an_engine(policy=Coserve.PRIORITY_RECOMPUTE, sequences_max=1)
    engine.add("offline", offline=True, max_tokens=3)
    engine.step()
    engine.add("online", max_tokens=1)
    assert engine.step(2) == {"offline": 1}
    assert engine.step() == {"online": 4}


def test_online_only_never_runs_offline_work_and_may_rest(an_engine: EngineBuilder) -> None:
    engine = an_engine(policy=Coserve.ONLINE_ONLY)
    engine.add("offline", offline=True)
    assert engine.scheduler.schedule(now_ns=0) is None
    assert engine.scheduler.may_rest
    engine.add("online", max_tokens=1)
    assert engine.step() == {"online": 4}


def test_what_the_tides_brought_is_counted_apart(an_engine: EngineBuilder) -> None:
    engine = an_engine(tbt_slo_ms=12)
    engine.add("offline", offline=True, tokens=10)
    engine.step()
    engine.add("online", tokens=6)
    engine.step(2)
    tally = engine.scheduler.tally
    assert (tally.steps_offline, tally.steps_mixed, tally.steps_online) == (1, 1, 1)
    assert (tally.tokens_offline, tally.tokens_online) == (11, 7)
    assert (tally.ttft_met, tally.ttft_missed, tally.tbt_met, tally.tbt_missed) == (1, 0, 1, 0)
    engine.now_ms += 50
    engine.step()
    assert tally.tbt_missed == 1
