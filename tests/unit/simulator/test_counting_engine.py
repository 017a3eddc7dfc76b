"""The counted engine against the live scheduler taking single steps: equal to the nanosecond."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import pytest

from libs.kernel.rng import Rng
from libs.kernel.units import NS_PER_MS
from libs.policy.paper_profiles import GPT_20B
from libs.policy.shapes import ReplicaShape
from libs.sim.world import World
from services.simulator.spot.continuous_engine import ContinuousEngine
from services.simulator.spot.counting_engine import CountingEngine
from services.simulator.spot.engine import ReplicaEngine
from services.simulator.spot.work import SimRequest, Work

SHAPE = ReplicaShape(stages=2, shards=8)
SEQUENCES_MAX = 4
STEP_TOKENS_MAX = 256
CONTEXT_TOKENS_MAX = 1_024


@dataclass(slots=True)
class Seen:
    """Everything that can be seen of an engine from outside."""

    ended: list[tuple[str, int | None, int | None]] = field(default_factory=list)
    looks: list[object] = field(default_factory=list)
    actions: int = 0

    def request_finished(self, request: SimRequest) -> None:
        self.ended.append((request.request_id, request.first_token_at_ns, request.finished_at_ns))

    def engine_idle(self) -> None: ...

    def look(self, engine: ReplicaEngine) -> None:
        held = sorted((work.name, work.tokens_done, work.kv_tokens) for work in engine.held())
        self.looks.append((engine.report(), engine.kv_tokens, engine.requests_held, held))


MakeEngine = Callable[[World, Seen], ReplicaEngine]


def live(world: World, seen: Seen) -> ReplicaEngine:
    return ContinuousEngine(
        world, seen, profile=GPT_20B, shape=SHAPE, sequences_max=SEQUENCES_MAX,
        step_tokens_max=STEP_TOKENS_MAX, context_tokens_max=CONTEXT_TOKENS_MAX, is_stepwise=True,
    )  # fmt: skip


def counted(world: World, seen: Seen) -> ReplicaEngine:
    return CountingEngine(
        world, seen, profile=GPT_20B, shape=SHAPE, sequences_max=SEQUENCES_MAX,
        step_tokens_max=STEP_TOKENS_MAX,
    )  # fmt: skip


def history(
    make: MakeEngine, *, seed: int, requests: int, gap_ms_max: int, prompt_tokens_max: int = 400,
    output_tokens_max: int = 40,
) -> Seen:  # fmt: skip
    """Let requests come at odd moments: fresh ones, ones that go on, ones that bring their KV; look
    at the engine, and stop it, now and then."""
    world, seen, rng = World(seed=1, actions_max=10**8), Seen(), Rng(seed)
    engine = make(world, seen)
    engine.start()
    at_ns = 0
    for number in range(requests):
        at_ns += rng.randrange(gap_ms_max * NS_PER_MS)
        output_tokens = rng.randint(1, output_tokens_max)
        tokens_done = rng.choice((0, 0, rng.randrange(output_tokens)))
        request = SimRequest(
            request_id=f"request-{number:05}",
            arrived_at_ns=at_ns,
            prompt_tokens=rng.randint(1, prompt_tokens_max),
            output_tokens=output_tokens,
            tokens_done=tokens_done,
        )
        work = Work(requests=[request], tokens_done=tokens_done)
        if tokens_done and rng.random() < 0.5:
            work.kv_tokens = rng.randrange(request.kv_tokens)
        world.after(at_ns, partial(engine.add, work))
        if number % 7 == 0:
            world.after(at_ns + rng.randrange(10**9), partial(seen.look, engine))
        if number % 50 == 49:
            world.after(at_ns + 1, lambda: engine.stop(engine.start))
    world.run(until_ns=10**18, is_done=lambda: len(seen.ended) == requests)
    seen.actions = world.actions_run
    return seen


@pytest.mark.parametrize("gap_ms_max", [500, 3_000, 9_000])
def test_counted_steps_look_like_steps_that_the_live_scheduler_takes(gap_ms_max: int) -> None:
    for seed in (1, 2):
        taken = history(live, seed=seed, requests=60, gap_ms_max=gap_ms_max)
        told = history(counted, seed=seed, requests=60, gap_ms_max=gap_ms_max)
        assert len(taken.ended) == 60
        assert told.ended == taken.ended
        assert told.looks == taken.looks
        assert told.actions < taken.actions


def test_the_comparison_would_see_a_single_token_more_in_a_step() -> None:
    def coarser(world: World, seen: Seen) -> ReplicaEngine:
        return CountingEngine(
            world, seen, profile=GPT_20B, shape=SHAPE, sequences_max=SEQUENCES_MAX,
            step_tokens_max=STEP_TOKENS_MAX + 1,
        )  # fmt: skip

    taken = history(live, seed=1, requests=60, gap_ms_max=3_000)
    assert history(coarser, seed=1, requests=60, gap_ms_max=3_000).ended != taken.ended


def test_a_halted_engine_gives_away_what_the_live_scheduler_would() -> None:
    def halted(make: MakeEngine) -> list[tuple[str, int, int]]:
        world, seen = World(seed=1, actions_max=10**6), Seen()
        engine = make(world, seen)
        engine.start()
        for number in range(6):
            request = SimRequest(
                request_id=f"request-{number}",
                arrived_at_ns=0,
                prompt_tokens=300,
                output_tokens=100,
            )
            world.after(number * 10**9, partial(engine.add, Work(requests=[request])))
        world.after(9 * 10**9 + 7, engine.halt)
        world.run(until_ns=10**12, is_done=lambda: False)
        return [(w.name, w.requests[0].tokens_done, w.kv_tokens) for w in engine.take()]

    given = halted(counted)
    assert given == halted(live)
    assert sum(tokens_done for _, tokens_done, _ in given) > 0


def test_a_counted_request_costs_a_few_actions_whatever_its_tokens() -> None:
    few = history(counted, seed=3, requests=50, gap_ms_max=9_000, output_tokens_max=20)
    many = history(counted, seed=3, requests=50, gap_ms_max=9_000, output_tokens_max=2_000)
    assert many.actions < 8 * 50
    assert few.actions < 8 * 50
