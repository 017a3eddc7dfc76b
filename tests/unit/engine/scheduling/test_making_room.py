"""Who loses its blocks to online work, who does not, and who comes back first."""

from collections.abc import Callable
from typing import Any

from libs.engine.scheduling.burst_reserve import BurstReserve
from libs.engine.scheduling.coserve import Coserve
from libs.kernel.units import NS_PER_S

EngineBuilder = Callable[..., Any]


def running(engine: Any) -> set[str]:
    waiting = set(engine.scheduler.waiting_offline_ids())
    return set(engine.scheduler.sequence_ids) - waiting


def test_online_work_takes_the_blocks_of_offline_work(an_engine: EngineBuilder) -> None:
    engine = an_engine(blocks_total=8, context_tokens_max=32)
    engine.add("offline", offline=True, tokens=24)
    engine.step()
    engine.add("online", tokens=24)
    assert "online" in engine.step()
    assert engine.scheduler.waiting_offline_ids() == ("offline",)
    assert engine.scheduler.tally.evictions_recomputed == 1


def test_nobody_is_evicted_where_all_of_them_would_not_suffice(an_engine: EngineBuilder) -> None:
    engine = an_engine(blocks_total=16, context_tokens_max=60)
    engine.add("first", tokens=36)
    engine.step()
    engine.add("offline", offline=True, tokens=8)
    engine.step()
    engine.add("second", tokens=36)
    assert "offline" in engine.step() | engine.step()
    assert engine.scheduler.tally.evictions_recomputed == 0


def test_the_newest_is_evicted_where_all_cost_the_same(an_engine: EngineBuilder) -> None:
    engine = an_engine(blocks_total=12, context_tokens_max=48)
    engine.add("old", offline=True, tokens=12)
    engine.add("young", offline=True, tokens=12)
    engine.step()
    engine.add("online", tokens=28)
    engine.step()
    assert engine.scheduler.waiting_offline_ids() == ("young",)


def test_the_one_whose_kv_is_stored_is_evicted_before_a_newer_one(
    an_engine: EngineBuilder,
) -> None:
    engine = an_engine(blocks_total=12, context_tokens_max=48, enable_prefix_cache=True)
    engine.add("old", offline=True, tokens=12)
    engine.add("young", offline=True, tokens=12)
    engine.step()
    stored = {block_hash for block_hash, _ in engine.scheduler.full_blocks("old")}
    engine.scheduler.set_stored(stored)
    engine.add("online", tokens=28)
    engine.step()
    assert engine.scheduler.waiting_offline_ids() == ("old",)
    assert engine.scheduler.tally.evictions_stored == 1


def test_a_prefix_in_use_by_another_costs_nothing_and_is_not_evicted(
    an_engine: EngineBuilder,
) -> None:
    shared = tuple(range(1, 14))
    engine = an_engine(blocks_total=14, context_tokens_max=56, enable_prefix_cache=True)
    engine.add("first", offline=True, prompt=shared)
    engine.step()
    engine.add("second", offline=True, prompt=shared)
    engine.add("alone", offline=True, tokens=13, tenant="z")
    engine.step(2)
    before = engine.scheduler.full_blocks("first")
    # One block lacks. `second` frees one and loses three tokens, as the rest is shared; `alone`
    # would free four and lose fourteen.
    engine.add("online", tokens=24)
    engine.step()
    assert engine.scheduler.waiting_offline_ids() == ("second",)
    assert engine.scheduler.full_blocks("first")[: len(before)] == before


def test_one_that_was_evicted_comes_back_before_those_that_never_ran(
    an_engine: EngineBuilder,
) -> None:
    engine = an_engine(blocks_total=8, context_tokens_max=32, sequences_max=1)
    engine.add("first", offline=True, tokens=8)
    engine.step()
    engine.add("online", max_tokens=1)
    engine.add("second", offline=True, tokens=8)
    engine.step()
    assert engine.scheduler.waiting_offline_ids() == ("first", "second")
    engine.step()
    assert running(engine) == {"first"}


def test_the_order_of_two_evicted_ones_is_kept(an_engine: EngineBuilder) -> None:
    engine = an_engine(blocks_total=8, context_tokens_max=32)
    engine.add("first", offline=True, tokens=8)
    engine.add("second", offline=True, tokens=8)
    engine.add("third", offline=True, tokens=28)
    engine.step()
    engine.add("online", tokens=28, max_tokens=2)
    engine.step()
    assert engine.scheduler.waiting_offline_ids() == ("first", "second", "third")


def test_an_offline_sequence_never_takes_the_blocks_of_an_online_one(
    an_engine: EngineBuilder,
) -> None:
    engine = an_engine(blocks_total=8, context_tokens_max=32, tbt_slo_ms=1000, ttft_slo_ms=1000)
    engine.add("online", tokens=12, max_tokens=12)
    engine.add("offline", offline=True, tokens=6, max_tokens=20)
    for _ in range(12):
        assert "online" in engine.step()
    assert engine.scheduler.tally.preemptions > 0, "blocks never ran out"


def test_the_reserve_follows_the_busiest_of_the_last_seconds_and_is_bounded() -> None:
    reserve = BurstReserve(blocks_max=10)
    assert reserve.blocks(now_ns=0) == 0
    reserve.note_taken(3, now_ns=0)
    reserve.note_taken(4, now_ns=NS_PER_S - 1)
    reserve.note_taken(2, now_ns=NS_PER_S)
    assert reserve.blocks(now_ns=NS_PER_S) == 7
    assert reserve.blocks(now_ns=30 * NS_PER_S) == 2
    assert reserve.blocks(now_ns=31 * NS_PER_S) == 0
    reserve.note_taken(50, now_ns=40 * NS_PER_S)
    assert reserve.blocks(now_ns=40 * NS_PER_S) == 10


def test_offline_work_leaves_the_reserve_free_after_a_burst(an_engine: EngineBuilder) -> None:
    engine = an_engine(blocks_total=20, context_tokens_max=80, reserve_share_max=0.5)
    engine.add("burst", tokens=24, max_tokens=1)
    engine.step()
    for number in range(8):
        engine.add(f"offline{number}", offline=True, tokens=8)
    engine.step()
    load = engine.scheduler.load()
    assert load.blocks_reserved_for_online == 6
    assert load.blocks_free >= 6
    assert load.offline_running > 1


def test_a_reserve_that_grows_evicts_nobody_to_fill_it(an_engine: EngineBuilder) -> None:
    engine = an_engine(
        blocks_total=32,
        context_tokens_max=80,
        reserve_share_max=0.5,
        ttft_slo_ms=1_000,
        tbt_slo_ms=1_000,
    )
    for number in range(6):
        engine.add(f"offline{number}", offline=True, tokens=14)
    engine.step()
    for number in range(3):
        engine.add(f"burst{number}", tokens=20, max_tokens=1)
        engine.step()
    load = engine.scheduler.load()
    assert load.blocks_reserved_for_online == 15
    # One made room for the bursts; to fill the reserve would have taken another.
    assert load.blocks_free < 15
    assert load.offline_running == 5


def test_the_reserve_binds_nobody_who_runs_alone(an_engine: EngineBuilder) -> None:
    engine = an_engine(blocks_total=20, context_tokens_max=80, reserve_share_max=0.5)
    engine.add("burst", tokens=40, max_tokens=1)
    engine.step()
    engine.add("offline", offline=True, tokens=70)
    engine.step(2)
    assert running(engine) == {"offline"}


def test_without_a_policy_that_makes_room_an_online_sequence_waits(
    an_engine: EngineBuilder,
) -> None:
    engine = an_engine(
        policy=Coserve.NON_PREEMPTIVE, blocks_total=8, context_tokens_max=32, tbt_slo_ms=1000
    )
    engine.add("offline", offline=True, tokens=24, max_tokens=2)
    engine.step()
    engine.add("online", tokens=24)
    assert engine.step() == {"offline": 1}
