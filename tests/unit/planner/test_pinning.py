"""An operator's shape: answered when it is committed, kept by the next leader."""

from libs.contracts.placement import PinnedShape, PinRefused, PinShape, ShapePinned
from libs.contracts.wire import Encoding
from services.planner.events import PinRequested
from tests.planner_world import PlannerWorld, a_world_with


def pin(world: PlannerWorld, stages: int | None, shards: int = 1) -> None:
    shape = None if stages is None else PinnedShape(stages=stages, shards=shards)
    world.broadcast(
        PinRequested(
            request=PinShape(shape=shape),
            reply_to="inbox",
            encoding=Encoding.MSGPACK,
            cause_id="operator",
        )
    )


def sizes(world: PlannerWorld) -> list[int]:
    return [len(ids) for ids in world.shapes().values()]


def test_a_pinned_shape_is_planned_for_and_answered_once_it_is_committed() -> None:
    world = a_world_with("a", "b", "c", "d", shape=None)
    assert sizes(world) != [2, 2]
    pin(world, 2)
    assert world.answers == []
    world.run(seconds=1)
    assert sizes(world) == [2, 2]
    (answer,) = world.answers
    assert answer.answer == ShapePinned(plan_revision=world.placement.plan_revision)


def test_a_shape_that_the_model_cannot_have_is_refused_at_once() -> None:
    world = a_world_with("a", "b", shape=None)
    committed = len(world.history)
    pin(world, 9)
    (answer,) = world.answers
    assert isinstance(answer.answer, PinRefused)
    assert "9 stages" in answer.answer.message
    world.run(seconds=1)
    assert len(world.history) == committed


def test_a_pinned_shape_that_does_not_fit_now_gives_way_and_comes_back() -> None:
    world = a_world_with("a", "b", shape=None)
    pin(world, 4)
    world.run(seconds=1)
    assert isinstance(world.answers[0].answer, ShapePinned)
    assert world.placement.replicas
    for worker_id in "cd":
        world.add_worker(worker_id)
    world.run(seconds=1)
    assert sizes(world) == [4]


def test_the_next_leader_keeps_the_pin_and_an_operator_can_take_it_off() -> None:
    world = a_world_with("a", "b", "c", "d", shape=None)
    free = sizes(world)
    pin(world, 2)
    world.run(seconds=1)
    world.kill_planner("p1")
    world.add_planner("p2", shape=None)
    world.run(seconds=10)
    assert sizes(world) == [2, 2]
    pin(world, None)
    world.run(seconds=1)
    assert world.placement.pinned_shape is None
    assert free == [1, 1, 1, 1]
    assert sizes(world) in ([2, 2], free)  # hysteresis may keep what runs


def test_the_same_pin_again_is_answered_without_a_new_placement() -> None:
    world = a_world_with("a", "b", shape=None)
    pin(world, 2)
    world.run(seconds=1)
    committed = len(world.history)
    pin(world, 2)
    world.run(seconds=1)
    assert len(world.history) == committed
    assert len(world.answers) == 2


def test_of_several_planners_only_the_leader_answers() -> None:
    world = a_world_with("a", "b", shape=None)
    world.add_planner("p2", shape=None)
    world.run(seconds=1)
    pin(world, 2)
    world.run(seconds=1)
    assert len(world.answers) == 1
