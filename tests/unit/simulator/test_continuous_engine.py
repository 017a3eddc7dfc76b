"""The live scheduler under virtual time: stretches of steps change nothing but the effort."""

from functools import partial

import pytest

from libs.kernel.rng import Rng
from libs.kernel.units import NS_PER_MS, NS_PER_S
from libs.policy.paper_profiles import GPT_20B
from libs.policy.shapes import ReplicaShape
from libs.sim.world import World
from services.simulator.spot.continuous_engine import ContinuousEngine
from services.simulator.spot.work import SimRequest, Work

SHAPE = ReplicaShape(stages=2, shards=8)


class Listener:
    def __init__(self) -> None:
        self.finished: list[SimRequest] = []

    def request_finished(self, request: SimRequest) -> None:
        self.finished.append(request)

    def engine_idle(self) -> None: ...


def an_engine(world: World, listener: Listener, *, is_stepwise: bool = False) -> ContinuousEngine:
    engine = ContinuousEngine(
        world,
        listener,
        profile=GPT_20B,
        shape=SHAPE,
        sequences_max=4,
        step_tokens_max=256,
        context_tokens_max=1_024,
        is_stepwise=is_stepwise,
    )
    engine.start()
    return engine


def a_request(number: int = 0, *, output_tokens: int = 32, prompt_tokens: int = 512) -> SimRequest:
    return SimRequest(
        request_id=f"request-{number:05}",
        arrived_at_ns=0,
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
    )


def endings(
    *, is_stepwise: bool, requests: int, prompt_tokens: int = 512
) -> tuple[list[tuple[str, int | None]], int]:
    """Let requests of all lengths come at odd moments, and stop the engine now and then."""
    world, listener, rng = World(seed=1, actions_max=10_000_000), Listener(), Rng(5)
    engine = an_engine(world, listener, is_stepwise=is_stepwise)
    at_ns = 0
    for number in range(requests):
        at_ns += rng.randrange(prompt_tokens * 6 * NS_PER_MS)
        output_tokens = rng.randint(1, 12)
        request = a_request(number, output_tokens=output_tokens, prompt_tokens=prompt_tokens)
        world.after(at_ns, partial(engine.add, Work(requests=[request])))
        if number % 50 == 49:
            world.after(at_ns + 1, lambda: engine.stop(engine.start))
    world.run(until_ns=10**18, is_done=lambda: len(listener.finished) == requests)
    return [(r.request_id, r.finished_at_ns) for r in listener.finished], world.actions_run


def test_stretches_give_the_same_history_as_single_steps() -> None:
    stretched, few = endings(is_stepwise=False, requests=200)
    stepwise, many = endings(is_stepwise=True, requests=200)
    assert stretched == stepwise
    assert few < many


def test_what_comes_in_a_stretch_waits_for_the_boundary() -> None:
    world, listener = World(seed=1, actions_max=10_000), Listener()
    engine = an_engine(world, listener)
    engine.add(Work(requests=[a_request(0, output_tokens=128)]))
    world.run(until_ns=5 * NS_PER_S, is_done=lambda: False)
    late = a_request(1)
    engine.add(Work(requests=[late]))
    arrived_at_ns = world.now_ns
    world.run(until_ns=10**12, is_done=lambda: late.first_token_at_ns is not None)
    assert late.first_token_at_ns is not None
    assert late.first_token_at_ns - arrived_at_ns > 900 * NS_PER_MS  # its own prefill


def test_a_session_that_moves_with_its_kv_computes_none_of_it_again() -> None:
    world, listener = World(seed=1, actions_max=10_000), Listener()
    source, heir = an_engine(world, listener), an_engine(world, listener)
    request = a_request(output_tokens=128)
    source.add(Work(requests=[request]))
    world.after(4 * NS_PER_S, lambda: source.stop(lambda: None))
    world.run(until_ns=6 * NS_PER_S, is_done=lambda: False)
    (moved,) = source.take()
    tokens_done, moved_at_ns = moved.tokens_done, world.now_ns
    assert moved.kv_tokens == 512 + tokens_done - 1
    heir.add(moved)
    world.run(until_ns=10**12, is_done=lambda: bool(listener.finished))
    assert request.finished_at_ns is not None
    steps = 128 - tokens_done
    step_ns = (request.finished_at_ns - moved_at_ns) / steps
    assert step_ns == pytest.approx(85 * NS_PER_MS, rel=0.1)  # decodes, and less than a block


def test_a_session_that_moves_without_kv_is_prefilled_with_all_its_tokens() -> None:
    world, listener = World(seed=1, actions_max=10_000), Listener()
    engine = an_engine(world, listener)
    request = a_request(output_tokens=40)
    request.tokens_done = 39
    engine.add(Work(requests=[request], tokens_done=39))
    world.run(until_ns=10**12, is_done=lambda: bool(listener.finished))
    assert request.finished_at_ns is not None
    fresh = a_request(1, output_tokens=1)
    engine.add(Work(requests=[fresh]))
    began_at_ns = world.now_ns
    world.run(until_ns=10**12, is_done=lambda: len(listener.finished) == 2)
    assert fresh.finished_at_ns is not None
    whole_ns, prompt_ns = request.finished_at_ns, fresh.finished_at_ns - began_at_ns
    assert whole_ns == pytest.approx(prompt_ns * (512 + 39) / 512, rel=0.01)


def test_a_broken_engine_gives_away_what_was_answered_so_far() -> None:
    world, listener = World(seed=1, actions_max=10_000), Listener()
    engine = an_engine(world, listener)
    request = a_request(output_tokens=128)
    engine.add(Work(requests=[request]))
    world.after(4 * NS_PER_S, engine.halt)
    world.run(until_ns=10**12, is_done=lambda: False)
    (lost,) = engine.take()
    assert 20 < request.tokens_done == lost.tokens_done < 128
    assert listener.finished == []
