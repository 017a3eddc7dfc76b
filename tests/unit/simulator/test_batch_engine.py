"""The paper's engine: fixed batches that stop at a token and go on elsewhere."""

from collections import Counter
from functools import partial

from libs.kernel.units import NS_PER_S
from libs.policy.cost_model import batch_times, best_parts, execution_ns
from libs.policy.paper_profiles import GPT_20B
from libs.policy.shapes import ReplicaShape
from libs.sim.world import World
from services.simulator.spot.batch_engine import BatchEngine
from services.simulator.spot.work import SimRequest, Work

SHAPE = ReplicaShape(stages=3, shards=4)


class Listener:
    def __init__(self) -> None:
        self.finished: list[SimRequest] = []
        self.times_idle = 0

    def request_finished(self, request: SimRequest) -> None:
        self.finished.append(request)

    def engine_idle(self) -> None:
        self.times_idle += 1


def an_engine(world: World, listener: Listener) -> BatchEngine:
    times = partial(batch_times, GPT_20B, SHAPE, parts=best_parts(GPT_20B, SHAPE, batch=4))
    return BatchEngine(
        world,
        listener,
        lambda count, tokens: times(batch=count, prompt_tokens=tokens),
        batch_max=4,
    )


def a_request(number: int = 0) -> SimRequest:
    return SimRequest(
        request_id=f"request-{number}", arrived_at_ns=0, prompt_tokens=512, output_tokens=128
    )


def run(world: World, *, seconds: int = 1_000) -> None:
    world.run(until_ns=world.now_ns + seconds * NS_PER_S, is_done=lambda: False)


def test_a_single_request_takes_the_published_execution_time() -> None:
    world, listener = World(seed=1, actions_max=100), Listener()
    engine = an_engine(world, listener)
    engine.add(Work(requests=[a_request()]))
    engine.start()
    run(world)
    (request,) = listener.finished
    assert request.latency_ns is not None
    assert round(request.latency_ns / NS_PER_S, 3) == 14.373
    assert abs(request.latency_ns - execution_ns(GPT_20B, SHAPE, batch=1)) < 1_000


def test_what_waits_is_batched_by_powers_of_two() -> None:
    world, listener = World(seed=1, actions_max=100), Listener()
    engine = an_engine(world, listener)
    engine.add(Work(requests=[a_request(number) for number in range(7)]))
    engine.start()
    run(world)
    endings = Counter(request.finished_at_ns for request in listener.finished)
    sizes = [endings[at_ns] for at_ns in sorted(endings, key=lambda at_ns: at_ns or 0)]
    assert sizes == [4, 2, 1]


def test_requests_of_a_batch_are_answered_together_in_order() -> None:
    world, listener = World(seed=1, actions_max=100), Listener()
    engine = an_engine(world, listener)
    engine.add(Work(requests=[a_request(number) for number in range(4)]))
    engine.start()
    run(world)
    assert [r.request_id for r in listener.finished] == [f"request-{n}" for n in range(4)]
    assert len({request.finished_at_ns for request in listener.finished}) == 1


def test_a_batch_that_moves_with_its_kv_ends_as_if_it_had_not_moved() -> None:
    world, listener = World(seed=1, actions_max=100), Listener()
    source, heir = an_engine(world, listener), an_engine(world, listener)
    source.add(Work(requests=[a_request()]))
    source.start()
    world.after(5 * NS_PER_S, lambda: source.stop(lambda: None))
    run(world, seconds=6)
    (moved,) = source.take()
    assert 0 < moved.tokens_done < 128
    assert moved.kv_tokens == 512 + moved.tokens_done
    began_at_ns, tokens_left = world.now_ns, 128 - moved.tokens_done
    heir.add(moved)
    heir.start()
    run(world)
    (request,) = listener.finished
    step_ns = batch_times(GPT_20B, SHAPE, batch=1).step_ns
    assert request.finished_at_ns == began_at_ns + tokens_left * step_ns
    assert request.tokens_recomputed == 0


def test_work_without_kv_starts_over() -> None:
    world, listener = World(seed=1, actions_max=100), Listener()
    engine = an_engine(world, listener)
    begun = a_request()
    begun.tokens_done = 40
    engine.add(Work(requests=[begun]))
    engine.start()
    run(world)
    assert begun.tokens_recomputed == 40
    assert begun.finished_at_ns == execution_ns(GPT_20B, SHAPE, batch=1)


def test_a_stop_in_the_prefill_waits_for_the_first_token() -> None:
    world, listener = World(seed=1, actions_max=100), Listener()
    engine = an_engine(world, listener)
    engine.add(Work(requests=[a_request()]))
    engine.start()
    still: list[int] = []
    world.after(1, lambda: engine.stop(lambda: still.append(world.now_ns)))
    run(world, seconds=10)
    times = batch_times(GPT_20B, SHAPE, batch=1)
    assert still == [times.prefill_ns + times.embedding_ns + times.step_ns]
    assert engine.take()[0].tokens_done == 1


def test_a_broken_engine_never_says_that_it_stands_still() -> None:
    world, listener = World(seed=1, actions_max=100), Listener()
    engine = an_engine(world, listener)
    engine.add(Work(requests=[a_request()]))
    engine.start()
    still: list[int] = []
    engine.stop(lambda: still.append(world.now_ns))
    engine.halt()
    run(world)
    assert still == []
    assert listener.finished == []
