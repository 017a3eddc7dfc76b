"""The virtual clock: time moves only between actions, and a pause changes nothing."""

from functools import partial

import pytest

from libs.kernel.errors import InvariantViolation
from libs.sim.world import World


def a_run(*, pauses: tuple[int, ...]) -> list[tuple[int, str]]:
    world = World(seed=1, actions_max=100)
    seen: list[tuple[int, str]] = []

    def note(name: str) -> None:
        seen.append((world.now_ns, name))

    for name in ("first", "second", "third"):
        world.after(10, partial(note, name))
    world.after(20, partial(note, "last"))
    for until_ns in (*pauses, 100):
        world.run(until_ns=until_ns, is_done=lambda: False)
        world.after(100, lambda: None)
    return seen


def test_actions_of_one_instant_keep_their_order_however_often_the_run_pauses() -> None:
    expected = [(10, "first"), (10, "second"), (10, "third"), (20, "last")]
    assert a_run(pauses=()) == expected
    assert a_run(pauses=(1, 5, 9, 10, 15)) == expected


def test_a_livelock_ends_the_run() -> None:
    world = World(seed=1, actions_max=100)

    def again() -> None:
        world.after(0, again)

    again()
    with pytest.raises(InvariantViolation, match="more actions"):
        world.run(until_ns=1, is_done=lambda: False)
