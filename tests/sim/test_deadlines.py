"""Deadlines under virtual time: met where capacity allows, and a clean end where it does not."""

from functools import cache

import pytest

from libs.contracts.batches import BatchStatus
from libs.kernel.units import NS_PER_MS
from tests.offline_world import UNIX_S, Batch, OfflineWorld

NEAR_LINES, FAR_LINES = (300, 300), 1_400
LINES = sum(NEAR_LINES) + FAR_LINES
LONG_S = 100_000
ONLINE_EVERY_NS = 250 * NS_PER_MS


def a_world(*, has_online: bool) -> OfflineWorld:
    world = OfflineWorld()
    if has_online:
        world.send_online(every_ns=ONLINE_EVERY_NS)
    return world


@cache
def duration_s(*, has_online: bool) -> int:
    """How long the fleet takes for all lines when nothing hurries."""
    world = a_world(has_online=has_online)
    batch = world.submit(lines=LINES, due_s=LONG_S)
    world.run(until_s=LONG_S)
    assert batch.record.status is BatchStatus.COMPLETED
    return int(world.now_s) + 1


def submitted(world: OfflineWorld, *, window_s: float) -> list[Batch]:
    """Submit the far batch first and then two that are due in its window's second and third
    fifth."""
    far = world.submit(lines=FAR_LINES, due_s=round(window_s))
    near = [
        world.submit(lines=lines, due_s=round(window_s * (number + 2) / 5))
        for number, lines in enumerate(NEAR_LINES)
    ]
    return [*near, far]


def due_s(batch: Batch) -> int:
    return batch.record.deadline_at_unix_s - UNIX_S


def assert_in_time(batch: Batch) -> None:
    assert batch.record.status is BatchStatus.COMPLETED
    assert batch.record.counts.completed == batch.record.counts.total == len(batch.stored_at_s)
    assert max(batch.stored_at_s.values()) <= due_s(batch)


@pytest.mark.parametrize("has_online", [False, True])
def test_with_capacity_for_four_fifths_near_deadlines_are_met_and_the_rest_expires_cleanly(
    has_online: bool,
) -> None:
    window_s = 0.8 * duration_s(has_online=has_online)
    world = a_world(has_online=has_online)
    *near, far = submitted(world, window_s=window_s)
    world.run(until_s=LONG_S)
    for batch in near:
        assert_in_time(batch)
    assert far.record.status is BatchStatus.EXPIRED
    assert far.record.counts.completed == len(far.stored_at_s)
    assert max(far.stored_at_s.values()) <= due_s(far)
    assert world.now_s < due_s(far) + 5, "it ends when its time is over"
    answered = sum(batch.record.counts.completed for batch in (*near, far))
    assert answered > 0.9 * 0.8 * LINES, "what capacity there was is used"
    assert world.queue.intake.parts == {}, "nothing is held of what is over"


@pytest.mark.parametrize("has_online", [False, True])
def test_with_capacity_for_all_none_is_late(has_online: bool) -> None:
    window_s = 1.1 * duration_s(has_online=has_online)
    world = a_world(has_online=has_online)
    batches = submitted(world, window_s=window_s)
    world.run(until_s=LONG_S)
    for batch in batches:
        assert_in_time(batch)
        assert not batch.record.warning
